"""The rules of one call, as a pure machine: which frame may come when, and who may send how much.

Theory of operation. A stream carries calls one after another; each gets a machine. Both sides run
the same states and differ in their table. The caller opens with CALL. Then both directions are
independent: each side may send items until its END, as long as it has credit, and may grant credit.
RESULT or ERROR, always from the callee, ends the call; END is not needed before them. CANCEL, from
the caller, does not end it: the callee stops its handler and answers ERROR 5 (or the RESULT that
was under way), and only that answer makes the stream free for the next call. Until then both sides
drop what crosses: the caller drops items after its CANCEL, the callee drops everything but CALL
after its answer.

Credit is counted in bytes of item bodies. A sender with credit above zero may send one item of any
size, so that a small window never blocks a large item; the overdraft is worked off first. The
receiver grants what its application took, so it buffers at most its window and one item. A peer
that sends without credit breaks the protocol. What a hostile peer can still do: fill the window
(bounded, and counted against its share by the server), send tiny items (each is charged a fixed
cost there), or grant absurd credit (refused here, though it would only hurt its own memory).

Source: docs/specs/rpc.md s.3, s.4.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.errors import LimitError, ProtocolError, UsageError
from p2p.limits import RPC_BODY_BYTES_MAX, RPC_CREDIT_BYTES_MAX
from p2p.rpc_frames import (
    CallFrame,
    CancelFrame,
    CreditFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    ItemFrame,
    ResultFrame,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Side(enum.Enum):
    """Which end of the call we are."""

    CALLER = "caller"
    CALLEE = "callee"


class State(enum.IntEnum):
    """Where a call is."""

    IDLE = 0
    """Not started, or over."""
    OPEN = 1
    WE_ENDED = 2
    THEY_ENDED = 3
    BOTH_ENDED = 4
    CANCELLED = 5
    """CANCEL was sent (caller) or came (callee); the answer is outstanding."""


class Input(enum.IntEnum):
    """What can happen to a call."""

    SEND_CALL = 0
    SEND_ITEM = 1
    SEND_CREDIT = 2
    SEND_END = 3
    SEND_RESULT = 4
    SEND_ERROR = 5
    SEND_CANCEL = 6
    RECV_CALL = 7
    RECV_ITEM = 8
    RECV_CREDIT = 9
    RECV_END = 10
    RECV_RESULT = 11
    RECV_ERROR = 12
    RECV_CANCEL = 13


Table: TypeAlias = "Mapping[tuple[State, Input], State]"

_LIVE: Final = (State.OPEN, State.WE_ENDED, State.THEY_ENDED, State.BOTH_ENDED)

# Items and credit are the same on both sides: END closes a direction for items, credit always may
# flow (its sender does not know yet that the other side has ended).
_ITEMS: Final[Table] = {
    (State.OPEN, Input.SEND_ITEM): State.OPEN,
    (State.THEY_ENDED, Input.SEND_ITEM): State.THEY_ENDED,
    (State.OPEN, Input.SEND_END): State.WE_ENDED,
    (State.THEY_ENDED, Input.SEND_END): State.BOTH_ENDED,
    (State.OPEN, Input.RECV_ITEM): State.OPEN,
    (State.WE_ENDED, Input.RECV_ITEM): State.WE_ENDED,
    (State.OPEN, Input.RECV_END): State.THEY_ENDED,
    (State.WE_ENDED, Input.RECV_END): State.BOTH_ENDED,
    **{(state, Input.SEND_CREDIT): state for state in _LIVE},
    **{(state, Input.RECV_CREDIT): state for state in _LIVE},
}

TRANSITIONS: Final[Mapping[Side, Table]] = {
    Side.CALLER: {
        **_ITEMS,
        (State.IDLE, Input.SEND_CALL): State.OPEN,
        **{(state, Input.SEND_CANCEL): State.CANCELLED for state in _LIVE},
        **{(state, Input.RECV_RESULT): State.IDLE for state in (*_LIVE, State.CANCELLED)},
        **{(state, Input.RECV_ERROR): State.IDLE for state in (*_LIVE, State.CANCELLED)},
        # What was under way when we cancelled.
        (State.CANCELLED, Input.RECV_ITEM): State.CANCELLED,
        (State.CANCELLED, Input.RECV_CREDIT): State.CANCELLED,
        (State.CANCELLED, Input.RECV_END): State.CANCELLED,
    },
    Side.CALLEE: {
        **_ITEMS,
        (State.IDLE, Input.RECV_CALL): State.OPEN,
        **{(state, Input.RECV_CANCEL): State.CANCELLED for state in _LIVE},
        **{(state, Input.SEND_RESULT): State.IDLE for state in (*_LIVE, State.CANCELLED)},
        **{(state, Input.SEND_ERROR): State.IDLE for state in (*_LIVE, State.CANCELLED)},
        # What was under way when we answered, and what came after a CANCEL.
        **{
            (state, received): state
            for state in (State.IDLE, State.CANCELLED)
            for received in (
                Input.RECV_ITEM,
                Input.RECV_CREDIT,
                Input.RECV_END,
                Input.RECV_CANCEL,
            )
        },
    },
}
"""The only place with transitions. A received input that is missing is a ProtocolError, a sent one
a UsageError."""

# The tables again, by position: an enum is hashed by its name, which costs more than the rest of a
# step. Measured: 0.4 us a look-up, five look-ups a call.
_CALLER_STEPS, _CALLEE_STEPS = (
    tuple(tuple(TRANSITIONS[side].get((state, step)) for step in Input) for state in State)
    for side in (Side.CALLER, Side.CALLEE)
)

_RECV: Final[Mapping[type[Frame], Input]] = {
    CallFrame: Input.RECV_CALL,
    ItemFrame: Input.RECV_ITEM,
    CreditFrame: Input.RECV_CREDIT,
    EndFrame: Input.RECV_END,
    ResultFrame: Input.RECV_RESULT,
    ErrorFrame: Input.RECV_ERROR,
    CancelFrame: Input.RECV_CANCEL,
}


class CallMachine:
    """One call, seen from one side.

    Args:
        side: which end we are.
        window_bytes: item bytes the other side may be ahead of us; 0 when it may send none.
        credit_bytes: item bytes we may send at first; the callee learns it from CALL.

    Invariants: `window_bytes` = granted and unused + received and not taken + taken and not granted
    again; `credit_bytes` <= `RPC_CREDIT_BYTES_MAX`, and below zero by at most one item.
    """

    __slots__ = ("_left", "_steps", "_taken", "credit_bytes", "side", "state", "window_bytes")

    def __init__(self, side: Side, *, window_bytes: int = 0, credit_bytes: int = 0) -> None:
        assert 0 <= window_bytes <= RPC_CREDIT_BYTES_MAX
        self.side = side
        self.state = State.IDLE
        self.window_bytes = window_bytes
        self.credit_bytes = credit_bytes
        self._steps = _CALLER_STEPS if side is Side.CALLER else _CALLEE_STEPS
        self._left = window_bytes
        self._taken = 0

    def open_window(self, window_bytes: int) -> None:
        """Let the other side send items: the callee learns from CALL's method whether it may."""
        assert self.window_bytes == 0, "a window opens once"
        self.window_bytes = self._left = window_bytes

    @property
    def may_send_items(self) -> bool:
        """Whether our direction is still open for items, credit aside."""
        return self.state is State.OPEN or self.state is State.THEY_ENDED

    @property
    def live(self) -> bool:
        """Whether the call runs and nobody cancelled it."""
        return State.IDLE < self.state < State.CANCELLED

    def receive(self, frame: Frame) -> bool:
        """Account for a received frame.

        Returns:
            Whether it means something; False: it crossed a CANCEL or an answer, drop it.

        Raises:
            ProtocolError: it was not allowed now.
            LimitError: an item without credit, a body over the limit, or absurd credit.
        """
        state = self.state
        after = self._steps[state][_RECV[type(frame)]]
        if after is None:
            raise ProtocolError(f"{type(frame).__name__} not allowed for the {self.side.value}")
        self.state = after
        if state is after and (state is State.IDLE or state is State.CANCELLED):
            return False
        if isinstance(frame, ItemFrame):
            self._received_item(len(frame.body))
        elif isinstance(frame, CreditFrame):
            self._received_credit(frame.bytes_more)
        elif isinstance(frame, CallFrame):
            self._received_credit(frame.credit)
        return True

    def send(self, sent: Input) -> None:
        """Account for a frame that we are about to send.

        Raises:
            UsageError: it is not allowed now; a bug on this side.
        """
        after = self._steps[self.state][sent]
        if after is None:
            raise UsageError(f"{sent.name} while the call is {self.state.name}")
        self.state = after

    def send_item(self, size: int) -> None:
        """Account for an item that we are about to send.

        Raises:
            UsageError: without credit, after the end, or too large.
        """
        if self.credit_bytes <= 0:
            raise UsageError("no credit: wait for a grant before sending an item")
        if size > RPC_BODY_BYTES_MAX:
            raise UsageError(f"item has {size} bytes, the limit is {RPC_BODY_BYTES_MAX}: split it")
        self.send(Input.SEND_ITEM)
        self.credit_bytes -= size

    def take(self, size: int) -> int:
        """The application took a received item of `size` bytes.

        Returns:
            Bytes to grant with a CREDIT now, 0 for none. Half a window is saved up first, so that
            grants cost little.
        """
        if not self.live or self.state is State.THEY_ENDED or self.state is State.BOTH_ENDED:
            return 0
        self._taken += size
        if self._taken * 2 < self.window_bytes:
            return 0
        grant, self._taken = self._taken, 0
        self._left += grant
        return grant

    def _received_item(self, size: int) -> None:
        if self._left <= 0:
            raise LimitError("an item without credit")
        if size > RPC_BODY_BYTES_MAX:
            raise LimitError(f"item of {size} bytes, the limit is {RPC_BODY_BYTES_MAX}")
        self._left -= size

    def _received_credit(self, size: int) -> None:
        self.credit_bytes += size
        if self.credit_bytes > RPC_CREDIT_BYTES_MAX:
            raise LimitError(f"credit of {self.credit_bytes} bytes, at most {RPC_CREDIT_BYTES_MAX}")
