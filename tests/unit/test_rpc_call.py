"""The rules of one call: every state with every input, and the arithmetic of credit."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import LimitError, ProtocolError, UsageError
from p2p.limits import RPC_CREDIT_BYTES_MAX, RPC_WINDOW_BYTES
from p2p.rpc_call import TRANSITIONS, CallMachine, Input, Side, State
from p2p.rpc_frames import (
    NIL,
    CallFrame,
    CancelFrame,
    CreditFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    ItemFrame,
    ResultFrame,
)

FRAMES: dict[Input, Frame] = {
    Input.RECV_CALL: CallFrame("m", 1000, 0, NIL),
    Input.RECV_ITEM: ItemFrame(NIL),
    Input.RECV_CREDIT: CreditFrame(1),
    Input.RECV_END: EndFrame(),
    Input.RECV_RESULT: ResultFrame(NIL),
    Input.RECV_ERROR: ErrorFrame(8, "", 0, True, NIL),
    Input.RECV_CANCEL: CancelFrame(),
}

# How to bring a machine into each state by legal steps.
PATHS: dict[Side, dict[State, list[Input]]] = {
    Side.CALLER: {
        State.IDLE: [],
        State.OPEN: [Input.SEND_CALL],
        State.WE_ENDED: [Input.SEND_CALL, Input.SEND_END],
        State.THEY_ENDED: [Input.SEND_CALL, Input.RECV_END],
        State.BOTH_ENDED: [Input.SEND_CALL, Input.SEND_END, Input.RECV_END],
        State.CANCELLED: [Input.SEND_CALL, Input.SEND_CANCEL],
    },
    Side.CALLEE: {
        State.IDLE: [],
        State.OPEN: [Input.RECV_CALL],
        State.WE_ENDED: [Input.RECV_CALL, Input.SEND_END],
        State.THEY_ENDED: [Input.RECV_CALL, Input.RECV_END],
        State.BOTH_ENDED: [Input.RECV_CALL, Input.RECV_END, Input.SEND_END],
        State.CANCELLED: [Input.RECV_CALL, Input.RECV_CANCEL],
    },
}

LIVE = {State.OPEN, State.WE_ENDED, State.THEY_ENDED, State.BOTH_ENDED}


def apply(machine: CallMachine, step: Input) -> bool:
    if step in FRAMES:
        return machine.receive(FRAMES[step])
    machine.send(step)
    return True


def machine_in(side: Side, state: State) -> CallMachine:
    machine = CallMachine(side, window_bytes=1000, credit_bytes=1000)
    for step in PATHS[side][state]:
        apply(machine, step)
    assert machine.state is state
    return machine


def test_there_are_168_pairs_and_none_is_forgotten() -> None:
    pairs = list(itertools.product(Side, State, Input))
    assert len(pairs) == 2 * 6 * 14
    assert {(side, *key) for side in Side for key in TRANSITIONS[side]} <= set(pairs)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Input)
def test_every_pair_moves_as_the_table_says_or_is_refused(
    side: Side, state: State, step: Input
) -> None:
    machine = machine_in(side, state)
    after = TRANSITIONS[side].get((state, step))
    if after is not None:
        apply(machine, step)
        assert machine.state is after
    elif step in FRAMES:
        with pytest.raises(ProtocolError):
            apply(machine, step)
        assert machine.state is state
    else:
        with pytest.raises(UsageError):
            apply(machine, step)
        assert machine.state is state


@pytest.mark.parametrize("side", Side)
def test_the_specifications_rules_hold_in_the_table(side: Side) -> None:
    table = TRANSITIONS[side]
    answers = (
        (Input.RECV_RESULT, Input.RECV_ERROR)
        if side is Side.CALLER
        else (Input.SEND_RESULT, Input.SEND_ERROR)
    )
    for answer in answers:
        assert {state for state in State if table.get((state, answer)) is State.IDLE} == {
            *LIVE,
            State.CANCELLED,
        }, "only an answer ends a call, from any state but idle"
    ends = {state for (state, step), after in table.items() if after is State.IDLE and state}
    assert ends == {*LIVE, State.CANCELLED}
    cancel = Input.SEND_CANCEL if side is Side.CALLER else Input.RECV_CANCEL
    assert {state for state in LIVE if table[state, cancel] is State.CANCELLED} == LIVE
    forbidden = (
        (Input.RECV_CALL, Input.RECV_CANCEL, Input.SEND_RESULT, Input.SEND_ERROR)
        if side is Side.CALLER
        else (Input.SEND_CALL, Input.SEND_CANCEL, Input.RECV_RESULT, Input.RECV_ERROR)
    )
    assert not [key for key in table if key[1] in forbidden], "the other role's frames"


def test_what_crosses_a_cancel_or_an_answer_is_dropped() -> None:
    caller = machine_in(Side.CALLER, State.CANCELLED)
    for step in (Input.RECV_ITEM, Input.RECV_CREDIT, Input.RECV_END):
        assert not apply(caller, step)
    callee = machine_in(Side.CALLEE, State.IDLE)
    for step in (Input.RECV_ITEM, Input.RECV_CREDIT, Input.RECV_END, Input.RECV_CANCEL):
        assert not apply(callee, step)
        assert not apply(machine_in(Side.CALLEE, State.CANCELLED), step)
    assert apply(callee, Input.RECV_CALL), "and the next call is served"


def item(size: int) -> ItemFrame:
    return ItemFrame(msgspec.Raw(bytes(size)))


def test_an_item_may_overdraw_once_and_the_next_breaks_the_protocol() -> None:
    machine = machine_in(Side.CALLEE, State.OPEN)
    machine.receive(item(999))
    machine.receive(item(5000))
    with pytest.raises(LimitError, match="without credit"):
        machine.receive(item(1))


def test_a_side_that_granted_nothing_receives_no_item() -> None:
    machine = CallMachine(Side.CALLEE)
    machine.receive(FRAMES[Input.RECV_CALL])
    with pytest.raises(LimitError):
        machine.receive(item(1))


def test_a_sender_may_overdraw_once_and_then_waits_for_a_grant() -> None:
    machine = machine_in(Side.CALLER, State.OPEN)
    machine.send_item(999)
    machine.send_item(4000)
    assert machine.credit_bytes == -3999
    with pytest.raises(UsageError, match="no credit"):
        machine.send_item(1)
    machine.receive(CreditFrame(3999))
    with pytest.raises(UsageError, match="no credit"):
        machine.send_item(1)
    machine.receive(CreditFrame(1))
    machine.send_item(1)


def test_absurd_credit_is_refused() -> None:
    machine = machine_in(Side.CALLER, State.OPEN)
    machine.receive(CreditFrame(RPC_CREDIT_BYTES_MAX - 1000))
    with pytest.raises(LimitError):
        machine.receive(CreditFrame(1))
    callee = CallMachine(Side.CALLEE)
    with pytest.raises(LimitError):
        callee.receive(CallFrame("m", 0, RPC_CREDIT_BYTES_MAX + 1, NIL))


def test_an_item_over_the_body_limit_is_refused_both_ways() -> None:
    machine = machine_in(Side.CALLER, State.OPEN)
    with pytest.raises(UsageError, match="split it"):
        machine.send_item((1 << 20) + 1)
    with pytest.raises(LimitError):
        machine.receive(item((1 << 20) + 1))


def test_nothing_is_granted_once_the_other_side_ended_or_the_call_is_over() -> None:
    for state in (State.THEY_ENDED, State.BOTH_ENDED, State.CANCELLED, State.IDLE):
        assert machine_in(Side.CALLER, state).take(1_000_000) == 0


@given(sizes=st.lists(st.integers(1, 400_000), max_size=60), lag=st.integers(0, 5))
def test_two_machines_never_stall_and_never_buffer_more_than_a_window_and_an_item(
    sizes: list[int], lag: int
) -> None:
    sender = CallMachine(Side.CALLER, credit_bytes=RPC_WINDOW_BYTES)
    sender.send(Input.SEND_CALL)
    receiver = CallMachine(Side.CALLEE)
    receiver.receive(CallFrame("m", 0, 0, NIL))
    receiver.open_window(RPC_WINDOW_BYTES)
    waiting = list(sizes)
    unread: list[int] = []
    while waiting or unread:
        if waiting and sender.credit_bytes > 0:
            size = waiting.pop(0)
            sender.send_item(size)
            receiver.receive(item(size))
            unread.append(size)
            assert sum(unread[:-1]) < RPC_WINDOW_BYTES
        if unread and (len(unread) > lag or not waiting or sender.credit_bytes <= 0):
            grant = receiver.take(unread.pop(0))
            if grant:
                receiver.send(Input.SEND_CREDIT)
                sender.receive(CreditFrame(grant))
        assert sender.credit_bytes <= RPC_WINDOW_BYTES
        assert unread or not waiting or sender.credit_bytes > 0, "both sides wait for ever"
