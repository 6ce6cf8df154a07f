"""Which handlers a node offers to whom, and the search of its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import pytest

from federated.errors import HandlerError, UsageError
from federated.jobs.config import HandlerConfig, JobsConfig, LlmConfig
from federated.jobs.handlers.builtin import Echo
from federated.jobs.handlers.memory import MemorySearch, Question
from federated.jobs.handlers.names import EXPR_ID, full_id
from federated.jobs.handlers.registry import ANYBODY, Handlers, Rule, build_handlers
from tests.helpers.job_handlers import OWNER, PEER, make_batch, make_ctx

if TYPE_CHECKING:
    from federated.jobs.types import Row

Trust = Literal["own", "friend", "stranger", "none"]
TEAM, OTHER = b"t" * 16, b"o" * 16
BUILTINS = ["echo@1", "hash@1", "memory.search@1", "wordcount@1"]


def named(name: str) -> bytes | None:
    return {"team": TEAM}.get(name)


class FakeMemory:
    """A search that remembers how it was asked."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.asked: list[Question] = []

    async def __call__(self, question: Question) -> list[Row]:
        self.asked.append(question)
        return self.rows


def ids(handlers: Handlers, trust: Trust, group: bytes | None) -> list[str]:
    return [info.id for info in handlers.offered_to(trust, group)]


def test_a_new_node_offers_the_built_ins_and_its_memory() -> None:
    handlers = build_handlers(JobsConfig(), search=FakeMemory([]), named=named)
    for trust in ("own", "friend", "stranger"):
        assert ids(handlers, trust, TEAM) == BUILTINS  # type: ignore[arg-type]
    assert ids(handlers, "none", TEAM) == []


def test_files_are_offered_once_a_root_is_named_to_those_named() -> None:
    mine = build_handlers(JobsConfig(files={"n": "/notes"}), search=None, named=named)
    assert "files.list@1" in ids(mine, "own", None)
    assert "files.list@1" not in ids(mine, "friend", TEAM)
    config = JobsConfig(files={"n": "/notes"}, files_groups=("team",))
    ours = build_handlers(config, search=None, named=named)
    assert "files.list@1" in ids(ours, "stranger", TEAM)
    assert "files.list@1" not in ids(ours, "stranger", OTHER)


def test_expressions_are_taken_from_those_named_alone() -> None:
    handlers = build_handlers(JobsConfig(expr=("own",), slots=3), search=None, named=named)
    assert EXPR_ID in ids(handlers, "own", TEAM)
    assert EXPR_ID not in ids(handlers, "friend", TEAM)
    info = handlers.own(EXPR_ID)
    assert info is not None
    assert info.slots == 3
    assert handlers.own("nothing@1") is None


def test_programs_are_offered_to_their_groups_and_one_that_is_not_there_to_nobody() -> None:
    config = JobsConfig(
        handlers={
            "score@1": HandlerConfig(run="operators_own:score", groups=("team",)),
            "list@1": HandlerConfig(run=("ls",), groups=("friends",)),
            "gone@1": HandlerConfig(run=("no-such-program-of-ours",)),
        }
    )
    handlers = build_handlers(config, search=None, named=named)
    assert "score@1" in ids(handlers, "stranger", TEAM)
    assert "score@1" not in ids(handlers, "friend", OTHER)
    assert "list@1" in ids(handlers, "friend", OTHER)
    assert "gone@1" not in ids(handlers, "own", None)
    assert list(handlers.unavailable) == ["gone@1"]
    assert "no-such-program-of-ours" in handlers.unavailable["gone@1"]


def test_what_jobs_call_expr_is_one_version_of_it() -> None:
    assert full_id("expr:") == EXPR_ID
    assert full_id("echo@1") == "echo@1"
    assert full_id("llm:m") == "llm:m"


@pytest.mark.parametrize("trust", get_args(Trust))
@pytest.mark.parametrize("group", [None, TEAM, OTHER])
@pytest.mark.parametrize(
    "groups", [(), ("own",), ("friends",), ("team",), ("gone",), ("own", "team")]
)
def test_a_rule_is_what_it_says(trust: Trust, group: bytes | None, groups: tuple[str, ...]) -> None:
    expected = trust != "none" and (
        (trust == "own" and "own" in groups)
        or (trust == "friend" and "friends" in groups)
        or (group == TEAM and "team" in groups)
    )
    assert Rule(groups=frozenset(groups)).allows(trust, group, named) is expected


def test_a_group_that_is_gone_is_not_the_devices_alone() -> None:
    """No group and an unknown group both are None: they must not meet."""
    assert not Rule(groups=frozenset({"gone"})).allows("friend", None, named)


def test_what_is_denied_and_what_is_unknown_look_the_same() -> None:
    handlers = Handlers([(Echo(), Rule(groups=frozenset({"own"})))], named=named)
    assert handlers.get("echo@1", "own", None).info.id == "echo@1"
    told = []
    for handler in ("echo@1", "nothing@1"):
        with pytest.raises(HandlerError) as caught:
            handlers.get(handler, "stranger", TEAM)
        told.append((caught.value.reason, str(caught.value), caught.value.retry_after_s))
    assert told[0] == told[1] == ("policy", "policy", 0.0)


def test_two_handlers_of_one_id_are_a_bug() -> None:
    with pytest.raises(UsageError, match="echo@1"):
        Handlers([(Echo(), ANYBODY), (Echo(), ANYBODY)], named=named)


async def test_closing_reaches_every_handler_that_keeps_something() -> None:
    closed: list[str] = []

    class Keeper(MemorySearch):
        async def aclose(self) -> None:
            closed.append("closed")

    await Handlers([(Echo(), ANYBODY), (Keeper(FakeMemory([])), ANYBODY)], named=named).aclose()
    assert closed == ["closed"]


async def test_a_search_is_bound_to_who_asks() -> None:
    memory = FakeMemory([{"text": "m"}] * 30)
    batch = make_batch({"query": "why", "limit": 99}, {"query": "x"}, texts=["template", "q"])
    answers = await MemorySearch(memory).run(batch, make_ctx(trust="stranger", group=TEAM))
    assert [asked.query for asked in memory.asked] == ["template", "q"]
    assert [asked.limit for asked in memory.asked] == [20, 5]
    assert all(
        (asked.caller, asked.owner, asked.trust, asked.group) == (PEER, OWNER, "stranger", TEAM)
        for asked in memory.asked
    )
    assert [len(row["memories"]) for _, row, _ in answers if row] == [20, 20]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "bad_query"),
        ({"query": " "}, "bad_query"),
        ({"query": 3}, "bad_query"),
        ({"query": "x" * 5000}, "bad_query"),
        ({"query": "x", "limit": 0}, "bad_limit"),
        ({"query": "x", "limit": True}, "bad_limit"),
        ({"query": "x", "limit": "5"}, "bad_limit"),
    ],
)
async def test_a_bad_question_is_not_asked(row: Row, reason: str) -> None:
    memory = FakeMemory([])
    assert await MemorySearch(memory).run(make_batch(row), make_ctx()) == [(0, None, reason)]
    assert memory.asked == []


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"slots": -1}, "slots"),
        ({"stranger_work_s_per_h": -1.0}, "work_s_per_h"),
        ({"files": {"a b": "/x"}}, "files"),
        ({"files": {"..": "/x"}}, "files"),
        ({"files": {"a": "x"}}, "absolute"),
        ({"files_groups": ("",)}, "groups"),
        ({"handlers": {"score": HandlerConfig(run="m:f")}}, "name@version"),
        ({"handlers": {"echo@2": HandlerConfig(run="m:f")}}, "built-in"),
        ({"handlers": {"files.list@2": HandlerConfig(run="m:f")}}, "built-in"),
        ({"llm": {"a b": LlmConfig(url="https://x/v1", model="m")}}, "llm"),
        ({"expr": ("team",)}, "expr"),
        ({"engines": ("dask://10.0.0.1:1",)}, "engines"),
        ({"engines": ("http://localhost",)}, "engines"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        JobsConfig(**values)  # type: ignore[arg-type]


def test_settings_as_they_are_meant() -> None:
    config = JobsConfig(
        files={"notes": "/home/me/notes"},
        handlers={"score@1": HandlerConfig(run=("score", "--fast"), groups=("team",))},
        llm={"gemma": LlmConfig(url="http://127.0.0.1:8080/v1", model="gemma-3")},
        expr=("own", "friends"),
        engines=("dask://127.0.0.1:8786", "tls://cluster:8786"),
        engines_ca="/etc/cluster/ca.pem",
        engines_cert="/etc/cluster/cert.pem",
        engines_key="/etc/cluster/key.pem",
    )
    assert config.handlers["score@1"].slots == 1


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"run": "module"}, "module:function"),
        ({"run": "os.system('x'):y"}, "module:function"),
        ({"run": ()}, "command"),
        ({"run": ("",)}, "command"),
        ({"run": ("a\0b",)}, "command"),
        ({"effect": True, "deterministic": True}, "deterministic"),
        ({"wall_s": 0}, "wall_s"),
        ({"wall_s": 1e9}, "wall_s"),
        ({"mem_bytes": 1}, "mem_bytes"),
        ({"out_bytes": 2**21}, "out_bytes"),
        ({"slots": 0}, "slots"),
        ({"read": ("here",)}, "absolute"),
        ({"groups": ("",)}, "groups"),
    ],
)
def test_a_program_that_cannot_be_meant_is_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        HandlerConfig(**{"run": "module:function", **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"url": "ftp://x/v1"}, "url"),
        ({"url": "https:///v1"}, "url"),
        ({"url": "https://me@x/v1"}, "url"),
        ({"url": "https://x/v1?k=1"}, "url"),
        ({"url": "http://example.org/v1"}, "https"),
        ({"model": ""}, "model"),
        ({"slots": 0}, "slots"),
        ({"tokens_per_day": -1}, "tokens_per_day"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"wall_s": 601}, "wall_s"),
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        LlmConfig(**{"url": "https://x/v1", "model": "m", **values})  # type: ignore[arg-type]
