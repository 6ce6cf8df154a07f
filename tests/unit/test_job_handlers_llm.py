"""`llm:NAME` against a scripted endpoint: what is sent, what is made of the answer, quotas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from federated.errors import HandlerError
from federated.jobs.config import JobsConfig, LlmConfig
from federated.jobs.handlers.http_post import Endpoint, Reply
from federated.jobs.handlers.llm import DAY_S, Llm, TokenQuota
from federated.jobs.handlers.llm_prompt import RULES, rows_of
from federated.jobs.handlers.registry import build_handlers
from federated.jobs.types import Column
from tests.helpers.job_handlers import make_batch, make_ctx
from tests.helpers.llm_endpoint import completion, endpoint, stall, status

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = '[{"k": 0, "mood": "good"}, {"k": 1, "mood": "bad"}]'
ROWS = ({"text": "lovely"}, {"text": "awful"})


def model(url: str, **config: object) -> Llm:
    return Llm("m", LlmConfig(**{"url": url, "model": "gemma", **config}))  # type: ignore[arg-type]


async def test_rows_are_answered_by_a_chat() -> None:
    async with endpoint(completion(ANSWER)) as served:
        handler = model(served.url, system="You judge moods.")
        batch = make_batch(*ROWS, columns=[Column(name="mood", type="enum", enum=["good", "bad"])])
        assert await handler.run(batch, make_ctx()) == [
            (0, {"mood": "good"}, ""),
            (1, {"mood": "bad"}, ""),
        ]
    [request] = served.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{served.port}"
    assert "authorization" not in request.headers
    assert request.system == f"You judge moods.\n\n{RULES}"
    assert '"one of":["good","bad"]' in request.user
    assert '{"text":"lovely"}' in request.user
    assert request.body["model"] == "gemma"
    assert request.body["stream"] is False


async def test_rows_are_answered_by_a_completion() -> None:
    async with endpoint(completion('{"mood": "good"}', api="completions")) as served:
        handler = model(served.url, api="completions", system="Example: ...")
        batch = make_batch(ROWS[0], texts=["How is: lovely"])
        assert await handler.run(batch, make_ctx()) == [(0, {"mood": "good"}, "")]
    [request] = served.requests
    assert request.line == "POST /v1/completions HTTP/1.1"
    prompt = str(request.body["prompt"])
    assert prompt.startswith("Example: ...")
    assert "How is: lovely" in prompt
    assert "messages" not in request.body


async def test_a_job_chooses_four_settings_and_no_more() -> None:
    async with endpoint(completion(ANSWER)) as served:
        handler = model(served.url, max_tokens=100)
        chosen = {"temperature": 0.5, "max_tokens": 50, "seed": 7, "stop": "END"}
        await handler.run(make_batch(*ROWS, params=chosen), make_ctx())
        await handler.run(make_batch(*ROWS), make_ctx())
        for params in (
            {"model": "other"},
            {"system": "obey"},
            {"url": "http://example.org"},
            {"stream": True},
            {"tools": []},
            {"temperature": 3},
            {"temperature": float("nan")},
            {"temperature": True},
            {"max_tokens": 101},
            {"max_tokens": 0},
            {"max_tokens": 1.5},
            {"seed": -1},
            {"seed": "7"},
            {"stop": ["a"] * 5},
            {"stop": ["x" * 65]},
            {"stop": [3]},
        ):
            found = await handler.run(make_batch({}, params=params), make_ctx())
            assert found == [(0, None, "bad_params")], params
    first, second = (request.body for request in served.requests)
    assert {name: first[name] for name in chosen} == {**chosen, "stop": ["END"]}
    assert (second["temperature"], second["max_tokens"]) == (0.0, 100)
    assert "seed" not in second
    assert "stop" not in second


async def test_a_token_is_read_anew_for_each_request(tmp_path: Path) -> None:
    key = tmp_path / "key"
    async with endpoint(completion(ANSWER)) as served:
        handler = model(served.url, key_file=str(key))
        for token in ("one", "two"):
            key.write_text(token + "\n")
            await handler.run(make_batch(*ROWS), make_ctx())
        for wrong in ("a\nb", "a b", "\u00e9"):
            key.write_text(wrong)
            with pytest.raises(HandlerError, match="unavailable"):
                await handler.run(make_batch(*ROWS), make_ctx())
        key.unlink()
        with pytest.raises(HandlerError, match="unavailable"):
            await handler.run(make_batch(*ROWS), make_ctx())
    assert [r.headers["authorization"] for r in served.requests] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    ("code", "headers", "reason", "wait_s"),
    [
        (429, {"Retry_After": "17"}, "busy", 17.0),
        (429, {}, "busy", 5.0),
        (503, {"Retry_After": "99999999"}, "busy", 3600.0),
        (
            503,
            {
                "Date": "Thu, 26 Nov 2026 12:00:00 GMT",
                "Retry_After": "Thu, 26 Nov 2026 12:00:30 GMT",
            },
            "busy",
            30.0,
        ),
        (429, {"Retry_After": "soon"}, "busy", 5.0),
        (401, {}, "unavailable", 0.0),
        (500, {}, "unavailable", 0.0),
        (302, {"Location": "http://127.0.0.1:1/"}, "unavailable", 0.0),
        (400, {}, "exception", 0.0),
        (204, {}, "exception", 0.0),
    ],
)
async def test_what_a_status_means(
    code: int, headers: dict[str, str], reason: str, wait_s: float
) -> None:
    async with endpoint(status(code, b"" if code == 204 else b"{}", **headers)) as served:
        with pytest.raises(HandlerError) as caught:
            await model(served.url).run(make_batch(*ROWS), make_ctx())
    assert (caught.value.reason, caught.value.retry_after_s) == (reason, wait_s)


@pytest.mark.parametrize("retry", ["-1", "1e9", "\u0663", "", "Thu, 99 Nov 2026 12:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_none(retry: str) -> None:
    assert (
        Reply(
            429, {"retry-after": retry, "date": "Thu, 26 Nov 2026 12:00:00 GMT"}, b""
        ).retry_after_s()
        == 0
    )


async def test_slots_bound_what_is_sent_at_once() -> None:
    async with endpoint(stall) as served:
        handler = model(served.url, slots=2)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(handler.run, make_batch(*ROWS), make_ctx())
            await served.until(2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(served.requests) == 2
            nursery.cancel_scope.cancel()


async def test_a_silent_endpoint_times_out() -> None:
    async with endpoint(stall) as served:
        with pytest.raises(HandlerError, match="timeout"):
            await model(served.url, wall_s=0.2).run(make_batch(*ROWS), make_ctx())


async def test_a_friend_has_a_quota_and_own_devices_none() -> None:
    async with endpoint(completion(ANSWER, tokens=500)) as served:
        handler = model(served.url, tokens_per_day=1100, max_tokens=100)
        for _ in range(2):
            await handler.run(make_batch(*ROWS), make_ctx(trust="friend"))
        with pytest.raises(HandlerError) as caught:
            await handler.run(make_batch(*ROWS), make_ctx(trust="friend"))
        assert caught.value.reason == "quota"
        assert 0 < caught.value.retry_after_s <= DAY_S
        await handler.run(make_batch(*ROWS), make_ctx(trust="own"))
    assert len(served.requests) == 3


async def test_a_request_turned_away_costs_nothing_and_a_cancelled_one_does() -> None:
    async with endpoint(status(429), status(429), stall) as served:
        handler = model(served.url, tokens_per_day=1000, max_tokens=600)
        for _ in range(2):
            with pytest.raises(HandlerError, match="busy"):
                await handler.run(make_batch(*ROWS), make_ctx(trust="friend"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.run, make_batch(*ROWS), make_ctx(trust="friend"))
            await served.until(3)
            nursery.cancel_scope.cancel()
        with pytest.raises(HandlerError, match="quota"):
            await handler.run(make_batch(*ROWS), make_ctx(trust="friend"))
    assert len(served.requests) == 3


def test_a_quota_renews_after_a_day_and_is_each_owners_own() -> None:
    quota = TokenQuota(10)
    quota.take(b"a", 10, now=0.0)
    quota.take(b"b", 10, now=0.0)
    with pytest.raises(HandlerError, match="quota"):
        quota.take(b"a", 1, now=DAY_S - 1)
    quota.take(b"a", 1, now=DAY_S)
    quota.correct(b"a", -5)
    quota.take(b"a", 10, now=DAY_S)
    quota.correct(b"nobody", 5)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"k": 0, "a": 1}, {"k": 1, "a": 2}]', {0: {"a": 1}, 1: {"a": 2}}),
        ('```json\n[{"k": 1, "a": 2}]\n```', {1: {"a": 2}}),
        ('{"rows": [{"k": 1, "a": 2}]}', {1: {"a": 2}}),
        ('{"rows": [{"a": 2}]}', {}),
        ('Here: {"k": 0, "a": 1} as asked.', {0: {"a": 1}}),
        ('[{"k": 0, "a": 1}, {"k": 0, "a": 2}]', {0: {"a": 1}}),
        ('[{"k": 7, "a": 1}, {"k": "0"}, {"k": true}, {"a": 1}, 3, null]', {}),
        ('[{"k": 0, "a": "]"}] Note: [sic].', {0: {"a": "]"}}),
        ('As [1] says: {"k": 0, "a": "}"} (see {2}).', {0: {"a": "}"}}),
        ('[{"k": 0, "a": "x \\" ] y"}] and ["more"]', {0: {"a": 'x " ] y'}}),
        ('[{"k": 0, "a": 1}, {"k": 1, "a": ', {0: {"a": 1}}),
        ("no json at all", {}),
        ("", {}),
        ("[" * 100_000, {}),
        ('["' + "\\" * 200_001, {}),
        ('[{"' * 50_000, {}),
        ("]x[", {}),
        ('"text"', {}),
        ('{"k": 0, "a": NaN}', {}),
    ],
)
def test_rows_are_found_in_what_a_model_says(text: str, rows: dict[int, object]) -> None:
    assert rows_of(text, [0, 1]) == rows


def test_one_object_answers_one_row() -> None:
    assert rows_of('{"a": 1}', [5]) == {5: {"a": 1}}
    assert rows_of('[{"a": 1}]', [5]) == {5: {"a": 1}}
    assert rows_of('{"a": 1}', [5, 6]) == {}


async def test_rows_left_out_are_missing() -> None:
    async with endpoint(completion('[{"k": 1, "mood": "bad"}]')) as served:
        assert await model(served.url).run(make_batch(*ROWS), make_ctx()) == [
            (0, None, "not_returned"),
            (1, {"mood": "bad"}, ""),
        ]


def test_what_a_second_try_knows_is_shown() -> None:
    from federated.jobs.handlers.base import Batch, BatchRow
    from federated.jobs.handlers.llm_prompt import question

    batch = Batch(rows=[BatchRow(k=3, row={}, partial={"a": "known"})], params={})
    assert 'Known so far: {"a":"known"}' in question(batch)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.example/v1/", (True, "api.example", 443, "/v1", "api.example")),
        ("http://localhost:8080/v1", (False, "localhost", 8080, "/v1", "localhost:8080")),
        ("http://[::1]:80", (False, "::1", 80, "", "[::1]")),
    ],
)
def test_an_address_is_taken_apart(url: str, expected: tuple[object, ...]) -> None:
    found = Endpoint.of(url)
    assert (found.secure, found.host, found.port, found.path, found.authority) == expected


def test_a_model_is_offered_under_its_name() -> None:
    config = JobsConfig(
        llm={"m": LlmConfig(url="http://localhost/v1", model="g", groups=("friends",))}
    )
    handlers = build_handlers(config, search=None, named=lambda _name: None)
    assert handlers.get("llm:m", "friend", b"g").info.kind == "llm"
    assert not [i for i in handlers.offered_to("own", None) if i.kind == "llm"]
    assert json.dumps([i.id for i in handlers.offered_to("friend", b"g")]).count("llm:m") == 1
