"""`fed.join|submit|wait|leave|status`: models that members train together, round after round.

Tensors travel as files of the safetensors format: the daemon writes each state into its own folder,
a trainer says where its new state lies. The files are read by this daemon, as this user.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import trio

from daemon.errors import RpcError
from daemon.methods.fed import ERROR_OF, Seconds
from daemon.methods.group import find_group
from daemon.methods.peers import device_names, find_peer, shown_name
from daemon.rpc.registry import Call, method
from federated.errors import RoundError, UsageError
from federated.rounds.protocol.policy import ModelCodec, ModelRule, Policy, Share
from p2p.identity import peer_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.services import Services
    from federated.rounds.federation import Federation

WAIT_S_MAX: Final = 3600.0


class JoinParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A model to train with others; the rules must be equal at all members.

    Attributes:
        name: of the model.
        path: its first state, a safetensors file that is equal at all members.
        group: whose machines; none: your own.
        expected: machines to begin with; 0: begin when nobody new comes.
        wait_s: how long to wait for them.
        rule: how updates are merged: auto, mean, norm_bounded, median, trimmed, multi_krum, rfa,
            centred_clipping, bucketing_rfa, fltrust (with root_data).
        codec: how updates travel: f32, int8 or e3m0.
        clip: longest update that counts whole; none: learned from the first round.
        quorum: which share of the last round's members must agree, above one half.
        min_peers: members without whom there is no round.
        first_deadline_s: how long the first round waits for updates; later ones learn it.
        allow_plain: let machines of several owners see each other's updates.
        grace_s: after so long half of the updates will do; none: a quorum, at the deadline.
        root_data: the machine whose data all trust, by its name or id, or `self`: updates count by
            how far they point where its does.
    """

    name: str
    path: str
    group: str | None = None
    expected: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    wait_s: Seconds = 60.0
    rule: ModelRule = "auto"
    codec: ModelCodec = "int8"
    clip: Annotated[float, msgspec.Meta(gt=0)] | None = None
    quorum: Share = (2, 3)
    min_peers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    first_deadline_s: Seconds = 600.0
    allow_plain: bool = False
    grace_s: Seconds | None = None
    root_data: str | None = None


class ModelParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A model by its name.

    Attributes:
        name: of the model.
        group: whose machines; none: your own.
    """

    name: str
    group: str | None = None


class SubmitParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a trainer made of a state.

    Attributes:
        name: of the model.
        round: the round whose state it began with.
        path: the new state, a safetensors file.
        weight: above 0, such as the number of examples.
        metrics: figures for people, such as loss.
        group: whose machines; none: your own.
    """

    name: str
    round: Annotated[int, msgspec.Meta(ge=0)]
    path: str
    weight: float = 1.0
    metrics: Annotated[dict[str, float], msgspec.Meta(max_length=32)] = {}
    group: str | None = None


class WaitParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Wait for a round to end.

    Attributes:
        name: of the model.
        after_round: return once a later round is applied; -1: what is there now.
        timeout_s: how long to wait, at most an hour.
        group: whose machines; none: your own.
    """

    name: str
    after_round: Annotated[int, msgspec.Meta(ge=-1)] = -1
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=WAIT_S_MAX)] = 60.0
    group: str | None = None


class ModelInfo(msgspec.Struct, kw_only=True):
    """A model and how far it is here.

    Attributes:
        name: of the model.
        group: its name; empty: your own machines.
        round: rounds applied.
        root: hash of the chain of results, equal at all members.
        path: the state after the last one.
        phase: what the round under way does here: idle, joining, training, committing, scatter,
            gram, merge, confirm or merging; stopped: what was kept of it cannot be read.
        machines: who took part in the last one.
        deadline_s: how long the next one waits for updates.
        reason: why the last attempt ended, if it came to nothing; or whose machines are missing,
            while too few answer.
        numbers: in the model.
        rule: how updates are merged.
        codec: how they travel.
        banned: who signed two contradicting messages and takes no part any more.
        bytes_in: that rounds brought to this machine since its daemon began, those of all its
            models and questions together.
        bytes_out: that left it for them.
    """

    name: str
    group: str
    round: int
    root: str
    path: str
    phase: str
    machines: list[str]
    deadline_s: float
    reason: str
    numbers: int
    rule: str
    codec: str
    banned: list[str]
    bytes_in: int
    bytes_out: int


class Waited(msgspec.Struct, kw_only=True):
    """What came of waiting.

    Attributes:
        applied: whether a later round is there.
        model: how far it is.
    """

    applied: bool
    model: ModelInfo


class Accepted(msgspec.Struct, kw_only=True):
    """An update was taken.

    Attributes:
        late: rounds that it is late; each halves its weight.
    """

    late: int


@method("fed.join", scope="rounds", mutates=True)
async def join(call: Call, p: JoinParams) -> ModelInfo:
    """Train a model with the other machines that join it; returns once they have met."""
    try:
        policy = Policy(
            quorum=p.quorum, min_peers=p.min_peers, rule=p.rule, codec=p.codec, clip=p.clip,
            first_deadline_s=p.first_deadline_s, allow_plain=p.allow_plain, grace_s=p.grace_s,
            root_data=None if p.root_data is None else await _device(call, p.root_data),
        )  # fmt: skip
        federation = await (await call.services.rounds.models()).join(
            _group(call, p.group), p.name, policy, _path(p.path), expected=p.expected,
            wait_s=p.wait_s,
        )  # fmt: skip
    except (RoundError, UsageError, OSError) as error:
        raise _rpc_error(error) from None
    return await _info(call.services, federation)


@method("fed.submit", scope="rounds", mutates=True)
async def submit(call: Call, p: SubmitParams) -> Accepted:
    """Hand in a new state; this round's, or half as heavy the next one's if it comes too late."""
    federation = await _find(call, p.name, p.group)
    try:
        late = await federation.submit_file(p.round, Path(_path(p.path)), p.weight, p.metrics)
    except (RoundError, UsageError, OSError) as error:
        raise _rpc_error(error) from None
    return Accepted(late=late)


@method("fed.wait", scope="rounds")
async def wait(call: Call, p: WaitParams) -> Waited:
    """Wait until a round later than the one named is applied, or the time is over."""
    federation = await _find(call, p.name, p.group)
    try:
        with trio.move_on_after(p.timeout_s):
            await federation.wait(p.after_round)
    except RoundError as error:
        raise _rpc_error(error) from None
    applied = federation.standing.round > p.after_round
    return Waited(applied=applied, model=await _info(call.services, federation))


class OpenParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A model whose trainers on this machine share memory with the daemon.

    Attributes:
        name: of the model.
        trainers: how many updates make this machine's.
        group: whose machines; none: your own.
    """

    name: str
    trainers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    group: str | None = None


class Opened(msgspec.Struct, kw_only=True):
    """Where trainers hand in their updates.

    Attributes:
        socket: path of the pool's socket.
        lane: the model's number there.
        items: numbers of an update, float32, tensors one after the other by name.
        round: the round that is collected now.
        path: the state that training begins with.
    """

    socket: str
    lane: int
    items: int
    round: int
    path: str


@method("fed.open", scope="rounds")
async def open_pool(call: Call, p: OpenParams) -> Opened:
    """Let trainers of this machine hand in updates through shared memory, folded as they come."""
    federation = await _find(call, p.name, p.group)
    rounds = call.services.rounds
    try:
        host = (await rounds.hosts()).open(federation, p.trainers)
    except (RoundError, UsageError) as error:
        raise _rpc_error(error) from None
    number = federation.standing.round
    return Opened(
        socket=str(rounds.pool_socket),
        lane=host.lane.number,
        items=federation.schema.size,
        round=number + 1,
        path=str(federation.store.state_path(number)),
    )


@method("fed.leave", scope="rounds", mutates=True)
async def leave(call: Call, p: ModelParams) -> ModelInfo:
    """Take part in a model no longer; its states on this machine are removed."""
    federation = await _find(call, p.name, p.group)
    info = await _info(call.services, federation)
    await (await call.services.rounds.models()).leave(_group(call, p.group), p.name)
    return info


class StatusParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Every model."""


@method("fed.status", scope="rounds")
async def status(call: Call, p: StatusParams) -> list[ModelInfo]:
    """The models that this machine trains with others."""
    del p
    return [await _info(call.services, one) for one in (await call.services.rounds.models()).all()]


def _group(call: Call, name: str | None) -> bytes | None:
    return None if name is None else find_group(call.services, name)


async def _find(call: Call, name: str, group: str | None) -> Federation:
    try:
        return (await call.services.rounds.models()).find(_group(call, group), name)
    except RoundError as error:
        raise _rpc_error(error) from None


async def _device(call: Call, wanted: str) -> bytes:
    own = bytes(call.services.node.id)
    if wanted in {"self", peer_text(own)}:
        return own
    return bytes.fromhex((await find_peer(call.services, wanted)).node_id)


def _path(path: str) -> str:
    if not os.path.isabs(path):
        raise RpcError("invalid_params", "give the file's whole path, from the root on")
    return path


def _rpc_error(error: RoundError | UsageError | OSError) -> RpcError:
    if isinstance(error, RoundError):
        return RpcError(ERROR_OF[error.reason], str(error), data={"reason": error.reason})
    if isinstance(error, UsageError):
        return RpcError("invalid_params", str(error))
    return RpcError("not_found", f"the file cannot be read or written: {error.strerror}")


async def _info(services: Services, federation: Federation) -> ModelInfo:
    standing = federation.standing
    names = await device_names(services)
    groups = {view.group: view.name for view in services.replication.groups()}
    return ModelInfo(
        name=standing.name,
        group=groups.get(standing.group, standing.group.hex()[:16]),
        round=standing.round,
        root=standing.root.hex(),
        path=str(federation.store.state_path(standing.round)),
        phase=federation.phase,
        machines=[shown_name(names, peer, services) for peer in standing.circle],
        deadline_s=federation.deadline_s,
        reason=_trouble(federation, lambda peer: shown_name(names, peer, services)),
        numbers=federation.schema.size,
        rule=standing.rule,
        codec=standing.policy.codec,
        banned=[shown_name(names, peer, services) for peer in standing.banned],
        bytes_in=services.rounds.carried.bytes_in,
        bytes_out=services.rounds.carried.bytes_out,
    )


def _trouble(federation: Federation, shown: Callable[[bytes], str]) -> str:
    """Why nothing goes on, or why the last attempt ended."""
    attendance = federation.attendance
    if not attendance.lack:
        return federation.last_abort
    missing = [shown(peer) for peer in attendance.missing]
    return f"{attendance.lack}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
