"""JSON-RPC 2.0, one object a line, on a connection past its hello.

Each request runs in a task of its own; answers come in the order in which they are done. While
`in_flight_max` are at work, nothing more is read: a client that sends faster waits in its own
`send`. Source: JSON-RPC 2.0 specification; docs/specs/local-rpc.md.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.errors import RpcError
from daemon.events import Event, Lagged, hex_ids
from daemon.rpc.connection import EOF_GRACE_S, UNSENT_BYTES_MAX
from daemon.rpc.dispatch import receipt_key
from memory.scopes import allows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.rpc.connection import Connection
    from daemon.rpc.registry import Context, Method, Registry
    from daemon.rpc.session import Invoker

DEPTH_MAX: Final = 64
"""Nesting of a request (daemon.md s.5); no method's params reach ten."""

BAD_LINES_MAX: Final = 20
"""Bad lines in a row before the client is cut off: it speaks another protocol (daemon.md s.5)."""

ID_CHARS_MAX: Final = 128
"""Of a request id; they are kept while the request runs."""

SUBSCRIPTIONS_MAX: Final = 16
"""Event subscriptions of one connection. Guess: one per pane of a screen."""

_EVENTS_AHEAD_BYTES: Final = 2**20
"""Events wait in their own queue, which drops, while this much of a connection is unsent."""

_BRACKET_OR_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Meta(msgspec.Struct, frozen=True):
    """`params._meta`: about the call, not its arguments.

    Attributes:
        deadline_ms: cancel after so many milliseconds.
        progress: whether `rpc.progress` notifications are wanted.
        replay: whether this request may have been sent before, on another connection.
    """

    deadline_ms: int | None = None
    progress: bool = False
    replay: bool = False


class Request(msgspec.Struct, frozen=True):
    """A line."""

    jsonrpc: str
    method: str
    id: int | str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decode_request: Final = msgspec.json.Decoder(Request).decode
_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_meta: Final = msgspec.json.Decoder(Meta).decode
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode
_NO_META: Final = Meta()


def check_depth(line: bytes) -> None:
    """Refuse nesting over 64: the decoders below would recurse with it.

    Raises:
        RpcError: invalid_request.
    """
    if line.count(b"{") + line.count(b"[") <= DEPTH_MAX:
        return
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(line):
        char = match[0]
        if char in {b"{", b"["}:
            depth += 1
            if depth > DEPTH_MAX:
                raise RpcError("invalid_request", f"nested deeper than {DEPTH_MAX}")
        elif char in {b"}", b"]"}:
            depth -= 1


def decode_request_untrusted(line: bytes) -> Request:
    """Read a line as a request.

    Raises:
        RpcError: parse_error or invalid_request.
    """
    check_depth(line)
    try:
        request = _decode_request(line)
    except msgspec.ValidationError:
        raise RpcError("invalid_request", _what_is_wrong(line)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RpcError("parse_error", "the line is not one JSON object") from None
    if request.jsonrpc != "2.0":
        raise RpcError("invalid_request", 'jsonrpc must be "2.0"')
    if isinstance(request.id, str) and len(request.id) > ID_CHARS_MAX:
        raise RpcError("invalid_request", f"an id may have {ID_CHARS_MAX} characters")
    return request


def _what_is_wrong(line: bytes) -> str:
    if line.lstrip()[:1] == b"[":
        return "batches are not served: send each request on a line of its own"
    return "a request has jsonrpc, method, an id that is text or a whole number, and params"


def decode_params_untrusted(entry: Method, raw: bytes) -> tuple[msgspec.Struct, Meta]:
    """Read params into the method's struct, `_meta` apart.

    Raises:
        RpcError: invalid_params; it names the field, never a value.
    """
    try:
        meta = _NO_META
        if b'"_meta"' in raw:
            fields = _decode_fields(raw)
            if "_meta" in fields:
                meta = _decode_meta(fields.pop("_meta"))
                raw = msgspec.json.encode(fields)
        params: msgspec.Struct = msgspec.json.decode(raw, type=entry.params)
    except msgspec.ValidationError as error:
        raise RpcError("invalid_params", f"{entry.name}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RpcError("parse_error", "the params are not JSON") from None
    if meta.deadline_ms is not None and meta.deadline_ms < 0:
        raise RpcError("invalid_params", "_meta.deadline_ms must not be negative")
    return params, meta


def encode_result(request_id: int | str, result: object) -> bytes:
    """The line that answers a request."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def encode_error(request_id: int | str | None, error: RpcError) -> bytes:
    """The line that refuses a request."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": error.as_json()})


def encode_notification(method: str, params: dict[str, object]) -> bytes:
    """A line that wants no answer."""
    return _encode({"jsonrpc": "2.0", "method": method, "params": params})


class JsonRpcSession:
    """Serves one connection.

    Args:
        connection: past its hello.
        context: who is there; its `ops` is set to this session.
        registry: the methods.
        invoker: runs them.
        in_flight_max: requests at work at once.
    """

    def __init__(
        self,
        connection: Connection,
        context: Context,
        registry: Registry,
        invoker: Invoker,
        *,
        in_flight_max: int,
    ) -> None:
        self._connection = connection
        self._context = dataclasses.replace(context, ops=self)
        self._registry = registry
        self._invoker = invoker
        self._slots = trio.Semaphore(in_flight_max)
        self._running: dict[int | str, trio.CancelScope] = {}
        self._subscriptions: dict[int, trio.CancelScope] = {}
        self._next_subscription = 1
        self._bad_lines = 0
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        """Until the input ends and what it asked is answered, or 2 s after its end."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            async with trio.open_nursery() as calls:
                await self._read(calls)
                # The client may have closed only its side: answers under way are still wanted.
                # One that never ends would keep the connection for ever.
                calls.cancel_scope.deadline = trio.current_time() + EOF_GRACE_S
            nursery.cancel_scope.cancel()

    async def _read(self, calls: trio.Nursery) -> None:
        while True:
            # A slot first: while all are taken, nothing is read. A free one costs no trip through
            # the scheduler; reading, right below, is a checkpoint.
            try:
                self._slots.acquire_nowait()
            except trio.WouldBlock:
                await self._slots.acquire()
            try:
                line = await self._connection.receive_line()
            except RpcError as error:
                self._send(encode_error(None, error))
                self._slots.release()
                return
            if line is None or not self._begin(line, calls):
                self._slots.release()
                if line is None or self._bad_lines >= BAD_LINES_MAX:
                    return

    def _begin(self, line: bytes, calls: trio.Nursery) -> bool:
        """Start the request of a line; False if it was answered at once."""
        request_id: int | str | None = None
        try:
            request = decode_request_untrusted(line)
            self._bad_lines = 0
            request_id = None if request.id is msgspec.UNSET else request.id
            entry = self._entry(request.method, request_id)
            params, meta = decode_params_untrusted(entry, bytes(request.params))
        except RpcError as error:
            if error.name in {"parse_error", "invalid_request"}:
                self._bad_lines += 1
            self._send(encode_error(request_id, error))
            return False
        scope = trio.CancelScope()
        if request_id is not None:
            self._running[request_id] = scope
        calls.start_soon(self._call, entry, request_id, params, meta, bytes(request.params), scope)
        return True

    def _entry(self, name: str, request_id: int | str | None) -> Method:
        entry = self._registry.get(name)
        if entry is None:
            raise RpcError("unknown_method", "there is no such method")
        if request_id is not None and request_id in self._running:
            raise RpcError("invalid_request", "a request of that id is still at work")
        return entry

    async def _call(
        self,
        entry: Method,
        request_id: int | str | None,
        params: msgspec.Struct,
        meta: Meta,
        raw: bytes,
        scope: trio.CancelScope,
    ) -> None:
        async def progress(done: int, total: int | None, message: str) -> None:
            if request_id is not None and meta.progress:
                self.notify(
                    "rpc.progress",
                    {"id": request_id, "done": done, "total": total, "message": message},
                )
            await trio.lowlevel.checkpoint()

        key = None
        if entry.mutates and request_id is not None:
            spelled = msgspec.json.encode(request_id).decode()
            key = receipt_key(self._context.session, spelled, raw_params(raw))
        answer = encode_error(request_id, RpcError("cancelled", "the request was cancelled"))
        try:
            with scope:
                result = await self._invoker.invoke(
                    self._context,
                    entry,
                    params,
                    progress=progress,
                    deadline_ms=meta.deadline_ms,
                    receipt_key=key,
                    replay=meta.replay,
                )
                if request_id is not None:
                    answer = _bounded(encode_result(request_id, result), request_id)
        except RpcError as error:
            answer = encode_error(request_id, error)
        finally:
            if request_id is not None:
                self._running.pop(request_id, None)
            self._slots.release()
        if request_id is not None:
            self._send(answer)

    def _send(self, line: bytes) -> None:
        try:
            # With others at work, one send carries all answers that are ready.
            self._connection.queue(line, at_once=not self._running)
        except trio.BrokenResourceError:
            return  # the connection is ending; there is nobody to tell

    def notify(self, method: str, params: dict[str, object]) -> None:
        """Send a notification; dropped when the connection is gone."""
        self._send(encode_notification(method, params))

    def cancel(self, request: int | str) -> bool:
        """Cancel a request of this connection; False if none of that id is at work."""
        scope = self._running.get(request)
        if scope is None:
            return False
        scope.cancel()
        return True

    def attach(self, topics: Sequence[str], since: tuple[str, int] | None) -> tuple[int, bool]:
        """Start to send events (see `daemon.rpc.registry.ConnectionOps`)."""
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise RpcError(
                "too_large",
                f"a connection may have {SUBSCRIPTIONS_MAX} subscriptions",
                data={"limit": SUBSCRIPTIONS_MAX},
            )
        if self._nursery is None:
            raise RpcError("invalid_state", "the connection is not serving")
        number = self._next_subscription
        hub = self._context.services.events
        subscription, reset = hub.subscribe(topics, since)
        self._next_subscription += 1
        scope = self._subscriptions[number] = trio.CancelScope()

        async def pump() -> None:
            try:
                with scope:
                    while True:
                        item = await subscription.receive()
                        if not self._still_valid():
                            return
                        if self._may_see(item):
                            self._send_event(number, item)
                        while self._connection.unsent_bytes > _EVENTS_AHEAD_BYTES:
                            await self._connection.flush()
                        await trio.lowlevel.checkpoint()
            finally:
                hub.unsubscribe(subscription)

        self._nursery.start_soon(pump)
        return number, reset

    def _still_valid(self) -> bool:
        """Whether the agent's token is still good; the person's connection always is."""
        principal = self._context.principal
        return not principal.agent_id or self._context.services.agents.still_valid(principal)

    def _may_see(self, item: Event | Lagged) -> bool:
        """Whether an event is of a scope that the caller may read, or of none."""
        if isinstance(item, Lagged) or item.topic not in {"memory", "state"}:
            return True
        scope = item.data.get("scope")
        return not isinstance(scope, str) or allows(self._context.caller().read, scope)

    def _send_event(self, number: int, item: Event | Lagged) -> None:
        if isinstance(item, Lagged):
            params: dict[str, object] = {"sub": number, "from": item.first, "to": item.last}
            self.notify("events.lagged", params)
            return
        self.notify(
            "event",
            {
                "sub": number,
                "seq": item.seq,
                "topic": item.topic,
                "name": item.name,
                "at_ms": item.at_ms,
                "data": hex_ids(item.data),
            },
        )

    def detach(self, subscription: int) -> bool:
        """Stop sending events; False if there is no such subscription."""
        scope = self._subscriptions.pop(subscription, None)
        if scope is None:
            return False
        scope.cancel()
        return True


def raw_params(raw: bytes) -> bytes:
    """Params without `_meta`, in one spelling: a replayed request differs only there."""
    fields = _decode_fields(raw)
    fields.pop("_meta", None)
    return msgspec.json.encode(fields)


def _bounded(line: bytes, request_id: int | str) -> bytes:
    """The line, or an error in its place when it alone is over what may lie unsent."""
    if len(line) + 1 <= UNSENT_BYTES_MAX:
        return line
    error = RpcError(
        "too_large",
        f"the answer is over {UNSENT_BYTES_MAX} bytes",
        remedy="Ask for less at once (limit, budget_tokens).",
        data={"limit": UNSENT_BYTES_MAX},
    )
    return encode_error(request_id, error)
