"""`llm:NAME`: rows put to a model behind an OpenAI-compatible endpoint of the operator's.

The operator fixes address, model and system prompt; a job chooses `temperature`, `max_tokens`,
`seed` and `stop`. See `llm_prompt` for what of a job the model reads, and `http_post` for what of
HTTP is spoken.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import HandlerError
from federated.jobs.handlers.base import HandlerInfo, TaskLimits
from federated.jobs.handlers.http_post import Endpoint, Reply, post_json
from federated.jobs.handlers.llm_prompt import checked_params, instruction, question, rows_of
from federated.jobs.handlers.names import LLM_PREFIX

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from federated.jobs.config import LlmConfig
    from federated.jobs.handlers.base import Batch, TaskCtx
    from federated.jobs.types import RowOut

# tasks.md s.6.
REPLY_BYTES_MAX: Final = 2**20
DAY_S: Final = 86_400.0
# Bytes a token, for what the endpoint does not count; as daemon.mcp counts.
_TOKEN_BYTES: Final = 3.6
# Owners whose use is remembered; beyond, the one whose day is oldest is forgotten.
_OWNERS_MAX: Final = 10_000
# Rows of one request: more, and models begin to mix them up (tasks.md s.10: best sizes 1 to 16).
_ROWS_MAX: Final = 16
# Until the endpoint says otherwise.
_RETRY_S: Final = 5.0


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Usage(msgspec.Struct):
    total_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_COMPLETIONS: Final = msgspec.json.Decoder(_Completion)


class TokenQuota:
    """Tokens that each owner may use in 24 hours, counted from its first use.

    Args:
        per_day: how many.
    """

    def __init__(self, per_day: int) -> None:
        self._per_day = per_day
        self._used: dict[bytes, tuple[float, int]] = {}

    def take(self, owner: bytes, tokens: int, now: float) -> None:
        """Count `tokens` as used.

        Raises:
            HandlerError: `quota`: it has not so many left; says when it has.
        """
        began, used = self._used.pop(owner, (now, 0))
        if now - began >= DAY_S:
            began, used = now, 0
        if used + tokens > self._per_day:
            self._used[owner] = (began, used)
            raise HandlerError("quota", retry_after_s=began + DAY_S - now)
        self._used[owner] = (began, used + tokens)
        if len(self._used) > _OWNERS_MAX:
            del self._used[min(self._used, key=lambda key: self._used[key][0])]

    def correct(self, owner: bytes, tokens: int) -> None:
        """Add `tokens`, or give them back if negative; nothing for one that is not counted."""
        if owner in self._used:
            began, used = self._used[owner]
            self._used[owner] = (began, max(0, used + tokens))


class Llm:
    """The handler `llm:NAME`.

    Args:
        name: under which peers use it.
        config: the operator's.
        tls: None: the system's authorities.
    """

    def __init__(self, name: str, config: LlmConfig, *, tls: ssl.SSLContext | None = None) -> None:
        self.info: Final = HandlerInfo(
            id=f"{LLM_PREFIX}{name}",
            kind="llm",
            deterministic=False,
            batch_max=_ROWS_MAX,
            slots=config.slots,
            limits=TaskLimits(wall_s=config.wall_s + 5.0),
            summary=f"puts rows to the model {config.model}",
        )
        self._config = config
        self._told = instruction(config.system)
        self._endpoint = Endpoint.of(config.url)
        self._tls = tls
        self._slots = trio.CapacityLimiter(config.slots)
        self._quota = TokenQuota(config.tokens_per_day)

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Put all rows of a task to the model in one request.

        Rows it did not answer are `missing: not_returned`; all are `bad_params` when the job chose
        a setting that it may not.

        Raises:
            HandlerError: `busy` (with the time that the endpoint named), `quota`, `timeout`,
                `unavailable`, `output`, `bad_output`, `exception`.
        """
        chosen = checked_params(batch, tokens_max=self._config.max_tokens)
        if chosen is None:
            return [(item.k, None, "bad_params") for item in batch.rows]
        asked = question(batch)
        prompt_tokens = _tokens(self._told) + _tokens(asked)
        reserved = self._reserve(ctx, prompt_tokens, chosen)
        used = 0
        try:
            async with self._slots:
                # Also what is cancelled from here on: else cancelling would be free of charge.
                used = reserved
                reply = await self._sent(ctx, self._body(asked, chosen))
            text, used = _said(reply, prompt_tokens)
        except HandlerError as error:
            if error.reason in {"busy", "unavailable"}:
                used = 0  # turned away at the door: it cost nothing
            raise
        finally:
            self._quota.correct(ctx.owner, used - reserved)
        rows = rows_of(text, [item.k for item in batch.rows])
        return [
            (item.k, rows[item.k], "") if item.k in rows else (item.k, None, "not_returned")
            for item in batch.rows
        ]

    async def aclose(self) -> None:
        """Nothing is kept between tasks."""

    def _reserve(self, ctx: TaskCtx, prompt_tokens: int, chosen: dict[str, object]) -> int:
        """Count what a request can cost at most, so that many at once do not pass the quota."""
        if ctx.trust == "own":
            return 0
        most = chosen["max_tokens"]
        assert isinstance(most, int)
        reserved = prompt_tokens + most
        self._quota.take(ctx.owner, reserved, trio.current_time())
        return reserved

    def _body(self, asked: str, chosen: dict[str, object]) -> bytes:
        body: dict[str, object] = {"model": self._config.model, **chosen, "stream": False}
        if self._config.api == "chat":
            body["messages"] = [
                {"role": "system", "content": self._told},
                {"role": "user", "content": asked},
            ]
        else:
            body["prompt"] = f"{self._told}\n\n{asked}\n\nJSON:\n"
        return msgspec.json.encode(body)

    async def _sent(self, ctx: TaskCtx, body: bytes) -> Reply:
        path = "/chat/completions" if self._config.api == "chat" else "/completions"
        token = await ctx.offload.run(self._token)
        with trio.move_on_after(self._config.wall_s):
            return await post_json(
                self._endpoint, path, body, token=token, bytes_max=REPLY_BYTES_MAX, tls=self._tls
            )
        raise HandlerError("timeout", f"no answer in {self._config.wall_s:g} s")

    def _token(self) -> str:
        """Read anew for each request: keys are replaced. In a thread."""
        if not self._config.key_file:
            return ""
        try:
            token = Path(self._config.key_file).read_text("ascii").strip()
        except (OSError, UnicodeError) as error:
            raise HandlerError("unavailable", f"key_file: {error}") from None
        if not token.isprintable() or " " in token:
            raise HandlerError("unavailable", "key_file holds no token")
        return token


def _said(reply: Reply, prompt_tokens: int) -> tuple[str, int]:
    """The text of an answer, and the tokens it cost: as the endpoint counts, else by our guess."""
    if reply.status in {429, 503}:
        raise HandlerError("busy", retry_after_s=reply.retry_after_s() or _RETRY_S)
    if 300 <= reply.status < 400:
        raise HandlerError("unavailable", "it answered with a redirect, which is not followed")
    if reply.status in {401, 403} or reply.status >= 500:
        raise HandlerError("unavailable", f"it answered with status {reply.status}")
    if reply.status != 200:
        raise HandlerError("exception", f"it answered with status {reply.status}")
    try:
        found = _COMPLETIONS.decode(reply.body)
    except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError):
        raise HandlerError("bad_output", "its answer is no completion") from None
    if not found.choices:
        raise HandlerError("bad_output", "its answer has no choice")
    first = found.choices[0]
    text = (first.message.content if first.message else first.text) or ""
    counted = found.usage.total_tokens if found.usage else 0
    return text, counted if counted > 0 else prompt_tokens + _tokens(text)


def _tokens(text: str) -> int:
    return int(len(text.encode("utf-8", "replace")) / _TOKEN_BYTES) + 1
