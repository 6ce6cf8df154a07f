"""Runs methods under all rules: draining, scope, rate, receipts, deadline, error map, one log line.

Both dialects, JSON-RPC and MCP, call `Dispatcher.invoke`; a rule that stands here holds for both.
"""

from __future__ import annotations

import hashlib
import logging
import math
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.error_map import is_bug, to_rpc_error
from daemon.errors import RpcError
from daemon.rpc.limits import RateLimits
from daemon.rpc.registry import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.config import RpcConfig
    from daemon.receipts import Receipts
    from daemon.rpc.registry import Context, Method, Progress

log = logging.getLogger("covey.rpc")

_RECEIPT_DOMAIN: Final = b"covey/receipt/1\0"


def receipt_key(session: str, request: str, params: bytes) -> bytes | None:
    """Key under which the result of a mutating call is kept.

    Args:
        session: the client's session id; without one there is no receipt.
        request: the request's id as JSON, so that 1 and "1" differ.
        params: the params as received.

    Returns:
        32 bytes, or None without a session.
    """
    if not session:
        return None
    digest = hashlib.sha256(_RECEIPT_DOMAIN)
    for part in (session.encode(), request.encode(), params):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


async def _unheard(done: int, total: int | None, message: str) -> None:
    """Progress that nobody asked for."""


class Dispatcher:
    """See the module.

    Args:
        config: rates.
        receipts: results of earlier writes; None for none (tests).
        now: monotonic seconds.
    """

    def __init__(
        self, config: RpcConfig, receipts: Receipts | None, now: Callable[[], float]
    ) -> None:
        self._rates = RateLimits(
            config.read_rate_per_s, config.write_rate_per_s, config.write_burst, now
        )
        self._receipts = receipts
        self._now = now
        self._draining = False
        self._in_flight = 0
        self._idle = trio.Event()
        self._idle.set()
        self.served = 0
        self.failed = 0
        self.bugs = 0

    @property
    def in_flight(self) -> int:
        """Calls at work."""
        return self._in_flight

    def drain(self) -> None:
        """Refuse new calls from now on; those at work go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Until no call is at work."""
        await self._idle.wait()

    async def invoke(
        self,
        context: Context,
        entry: Method,
        params: msgspec.Struct,
        *,
        progress: Progress | None = None,
        deadline_ms: int | None = None,
        receipt_key: bytes | None = None,
        replay: bool = False,
    ) -> object:
        """Run `entry` (see `daemon.rpc.session.Invoker`)."""
        started = self._now()
        self._enter()
        outcome = "ok"
        try:
            self._admit(context, entry, params)
            if replay and receipt_key is not None and entry.mutates:
                kept = await self._replayed(entry, receipt_key)
                if kept is not None:
                    outcome = "replayed"
                    return kept
            call = Call(
                context=context,
                deadline_s=math.inf
                if deadline_ms is None
                else trio.current_time() + deadline_ms / 1000,
                progress=progress or _unheard,
                receipt_key=receipt_key if entry.mutates else None,
            )
            if deadline_ms is None:
                return await entry.handler(call, params)
            with trio.fail_at(call.deadline_s):
                return await entry.handler(call, params)
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        except Exception as error:  # the border: every error becomes an answer
            answer = to_rpc_error(error)
            outcome = answer.name
            if is_bug(answer):
                self.bugs += 1
                log.exception("rpc_bug", extra={"f": {"method": entry.name}})
            raise answer from error
        finally:
            self._leave(context, entry, outcome, started)

    def _enter(self) -> None:
        self._in_flight += 1
        if self._in_flight == 1:
            self._idle = trio.Event()

    def _leave(self, context: Context, entry: Method, outcome: str, started: float) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()
        self.served += 1
        self.failed += outcome not in {"ok", "replayed"}
        level = logging.DEBUG if entry.unmetered else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = {
            "method": entry.name,
            "outcome": outcome,
            "ms": round((self._now() - started) * 1000, 2),
            "agent": context.principal.agent,
            "connection": context.connection,
        }
        log.log(level, "rpc", extra={"f": fields})

    def _admit(self, context: Context, entry: Method, params: msgspec.Struct) -> None:
        principal = context.principal
        if self._draining and not entry.unmetered:
            raise RpcError("draining", "the daemon is stopping")
        if principal.agent_id and not context.services.agents.still_valid(principal):
            raise RpcError("unauthenticated", "the token was revoked")
        if not principal.allows(entry.scope):
            if entry.scope == "owner":
                raise RpcError(
                    "forbidden",
                    f"{entry.name} is for the person alone",
                    remedy="Run it at a terminal of your own.",
                )
            raise RpcError(
                "forbidden",
                f"{entry.name} needs the scope {entry.scope}",
                data={"scope": entry.scope},
            )
        if not principal.is_owner and not entry.unmetered:
            amount = len(getattr(params, "notes", None) or ()) or 1
            self._rates.check(principal.agent, write=entry.mutates, amount=amount)

    async def _replayed(self, entry: Method, key: bytes) -> object | None:
        if self._receipts is None:
            return None
        kept = await self._receipts.get(key)
        if kept is None:
            return None
        return msgspec.json.decode(kept, type=entry.result)  # type: ignore[no-any-return]
