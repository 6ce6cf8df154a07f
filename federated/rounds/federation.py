"""A model that members train together, one round after the other.

The loop of a federation runs as long as this machine is its member. A trainer waits for a state,
trains, submits; the round ends without who is late, whose update counts half in the next one. Who
was away asks the circle where the others are, and goes on from there.
Source: docs/specs/rounds.md s.7.
"""

from __future__ import annotations

import logging
import mmap
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np
import trio

from federated.errors import RoundError, UsageError, is_full
from federated.rounds.federation_store import KEPT_STATES
from federated.rounds.knocking import KNOCK, Knock, Where
from federated.rounds.numeric import rules, safetensors, tensors
from federated.rounds.numeric.payload import encoded_bytes, join_parts
from federated.rounds.post import STATE_PART
from federated.rounds.protocol.checks import Setting
from federated.rounds.protocol.deadline import History as Offsets
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Update
from federated.rounds.protocol.orders import Tell
from federated.rounds.protocol.policy import MEMBERS_MAX, federation_id, quorum_of
from federated.rounds.protocol.wire import Apply, decode_untrusted, encode, unsigned
from federated.rounds.seat import RoundSeat, link_of
from federated.rounds.statefile import load_state
from federated.rounds.workshop import Workshop
from p2p.errors import DecodeError, P2pError
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from federated.rounds.federation_store import FederationStore, Standing
    from federated.rounds.numeric.dtypes import F32, Array
    from federated.rounds.post import Post, Wanted
    from federated.rounds.protocol.orders import Decided
    from federated.rounds.protocol.policy import Policy
    from federated.rounds.protocol.wire import Packet
    from federated.seams import Mesh
    from p2p.env import Env, Offload

log = logging.getLogger("covey.rounds")

KNOCK_S: Final = 10.0
LOOK_S: Final = 10.0
"""How often a member whose round does not end asks the others whether they are further."""
FULL_RETRY_S: Final = 10.0
AHEAD_MAX: Final = 256
"""Packets kept for the round after the one that ends here."""


class Submission(msgspec.Struct, frozen=True):
    """What a trainer made of the state after round `base`."""

    base: int
    update: object
    """float32[n]."""
    weight: float
    metrics: dict[str, float]


class Federation:
    """One federation at this member.

    Args:
        ident: its id.
        standing: the last applied round.
        store: rows and files.
        mesh, post, env, offload: as everywhere.
        tell: hears what a person may want to see.
        ended: hears of each round with its outcome.
    """

    def __init__(
        self, ident: bytes, standing: Standing, store: FederationStore, mesh: Mesh, post: Post,
        env: Env, offload: Offload, tell: Callable[[Tell], None],
        ended: Callable[[Standing, Setting, RoundSeat, float], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.ident = ident
        self.standing = standing
        self.store = store
        self.schema = tensors.decode_schema_untrusted(standing.schema)
        self._mesh = mesh
        self._post = post
        self._env = env
        self._offload = offload
        self._tell = tell
        self._ended = ended
        self._wanting: set[bytes] = set()
        self._submission: Submission | None = None
        self._seat: RoundSeat | None = None
        self._past: Workshop | None = None
        self._news = trio.Event()
        self._behind = trio.Event()
        self._ask_now = trio.Event()
        self._ahead: list[tuple[bytes, Packet]] = []
        self.scope = trio.CancelScope()
        self.left = trio.Event()
        self.last_abort = ""

    # ---- what trainers ask

    async def submit(self, base: int, update: F32, weight: float, metrics: dict[str, float]) -> int:
        """Take a trainer's update; how many rounds late it is.

        Args:
            base: the round whose state it began with.
            update: float32[n], finite: new state minus that one.
            weight: above 0, such as the number of examples.
            metrics: figures for people, such as loss.

        Raises:
            UsageError: of another length, not finite, a weight that cannot be.
            RoundError: `stale`: too many rounds late.
        """
        tensors.check_update(self.schema, update)
        if not 0 < weight <= 2.0**53:
            raise UsageError(f"a weight of {weight}: give a number above 0")
        late = self.standing.round - base
        if late < 0:
            raise UsageError(
                f"round {base} has not been yet: the last one is {self.standing.round}"
            )
        if late > self.standing.policy.stale_rounds:
            raise RoundError(
                "stale",
                f"an update of round {base} comes {late} rounds late, at most"
                f" {self.standing.policy.stale_rounds} are taken: begin again from the state now",
            )
        self._submission = Submission(base, update, weight * 0.5**late, dict(metrics))
        self._hand_in()
        return late

    async def submit_file(
        self, base: int, path: Path, weight: float, metrics: dict[str, float]
    ) -> int:
        """As `submit`, of a new state in a safetensors file.

        Raises:
            OSError: it cannot be read.
        """
        # A state that is not kept any more is too far back: `submit` says so.
        if 0 <= self.standing.round - base < KEPT_STATES:

            def read() -> F32:
                before = self.store.load_state(base)
                return tensors.delta(self.schema, load_state(path), before)

            update = await self._offload.run(read)
        else:
            update = np.zeros(self.schema.size, np.float32)
        return await self.submit(base, update, weight, metrics)

    @property
    def deadline_s(self) -> float:
        """How long the round under way waits for updates."""
        return self._seat.deadline_s if self._seat is not None else 0.0

    def _hand_in(self) -> None:
        seat, submission = self._seat, self._submission
        if seat is not None and submission is not None and seat.machine.member.update is None:
            update = Update(submission.weight, submission.metrics)
            seat.submit(update, cast("F32", submission.update))

    async def wait(self, after: int) -> Standing:
        """The first applied round after `after`."""
        while self.standing.round <= after:
            await self._news.wait()
        return self.standing

    @property
    def phase(self) -> str:
        """What the round under way does."""
        seat = self._seat
        if seat is None:
            return "idle"
        leader = seat.machine.leader
        if leader is not None:
            return leader.phase
        member = seat.machine.member
        if member.made is None:
            return "joining"
        return "training" if member.update is None else "merging"

    # ---- life

    async def run(self) -> None:
        """Take part until cancelled."""
        self._post.seat(self.ident, self)
        try:
            with self.scope:
                while True:
                    await self._one_round_or_pause()
        finally:
            self._post.unseat(self.ident, self)
            self.left.set()

    async def _one_round_or_pause(self) -> None:
        """A full disk ends the attempt before anything is said that could not be kept."""
        try:
            await self._one_round()
        except Exception as error:
            if not is_full(error):
                raise
            self._seat = None
            self.last_abort = "storage: the disk is full; free space on it, it goes on by itself"
            self._tell(Tell("round.storage", self.last_abort))
            log.exception("round_disk_full")
            await trio.sleep(FULL_RETRY_S)

    async def _one_round(self) -> None:
        setting = self._setting()
        number = setting.number
        self.store.begin(number)
        promised, vote = await self.store.promised(number)
        workshop = await self._workshop(setting)
        # Who has not the last update, row 0 of the rules, merges nothing.
        merges = workshop.has_reference or not self.standing.round
        link = link_of(self._post, setting, merges=merges)
        machine = Machine(setting, link, promised=promised, vote=vote)
        seat = RoundSeat(
            setting, machine, workshop, self._post, self._env, self._offload, self.store,
            self._heard,
        )  # fmt: skip
        self._seat = seat
        self._drop_stale()
        self._hand_in()
        began = self._env.now()
        ahead, self._ahead = self._ahead, []
        for sender, packet in ahead:
            if decode_untrusted(packet.body).round == setting.number:
                self._give_early(seat, sender, packet)
        if bytes(self._mesh.id) not in setting.circle:
            self._ask_now.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seat.drive)
            nursery.start_soon(self._look_out)
            await _first(seat.outcome.finished, self._behind)
            nursery.cancel_scope.cancel()
        self._seat = None
        if seat.outcome.decided is not None:
            standing = await self._apply(setting, seat, seat.outcome.decided)
            await self._ended(standing, setting, seat, began)
            self._stand(standing)
            self.last_abort = ""
        elif seat.outcome.failure is not None:
            self._submission = None
            self._tell(Tell("round.failed", str(seat.outcome.failure)))
        self._behind = trio.Event()

    def _heard(self, told: Tell) -> None:
        if told.kind == "round.aborted":
            self.last_abort = told.detail
        self._tell(told)

    def _setting(self) -> Setting:
        standing = self.standing
        policy = standing.policy
        circle = standing.circle
        newcomers = sorted(self._wanting - set(circle))[: MEMBERS_MAX - len(circle)]
        self._wanting.clear()  # who still wants in says so again
        others = {bytes(peer) for peer in self._mesh.members(standing.group or None)}
        deadline = Offsets(standing.offsets).deadline_s(len(circle), policy.first_deadline_s)
        group = standing.group or None
        return Setting(
            me=bytes(self._mesh.id),
            signer=self._mesh,
            federation=self.ident,
            number=standing.round + 1,
            circle=circle,
            newcomers=tuple(newcomers),
            owners={peer: self._mesh.owner(PeerId(peer), group) for peer in (*circle, *newcomers)},
            base_root=standing.root,
            policy=policy,
            schema=sha256(standing.schema).digest(),
            elements=self.schema.size,
            rule=standing.rule,
            clip=standing.clip or policy.clip or 0.0,
            deadline_s=deadline,
            payload_bytes=encoded_bytes(policy.codec, self.schema.size),
            candidates=frozenset(others | {bytes(self._mesh.id)}) - set(circle),
        )

    async def _workshop(self, setting: Setting) -> Workshop:
        kept = await self._offload.run(self.store.parts_kept)
        reference = await self._offload.run(lambda: self._reference(kept))
        base = await self._offload.run(lambda: self.store.load_state(self.standing.round))
        workshop = Workshop(
            reference, dict(setting.owners),
            applies=lambda start, values: tensors.refused(
                self.schema, base, start, cast("F32", values)
            ),
        )  # fmt: skip
        workshop.merged.update(kept)
        if self._past is None:
            self._past = workshop
        return workshop

    def _reference(self, kept: Mapping[bytes, bytes]) -> F32 | None:
        """The last applied update, row 0 of the rules."""
        standing = self.standing
        if not standing.parts or not set(standing.parts) <= kept.keys():
            return None
        counted = zip(standing.parts, standing.counts, strict=True)
        pieces = [(kept[digest], count) for digest, count in counted]
        return cast("F32", join_parts(standing.codec, pieces))

    def _drop_stale(self) -> None:
        """An update that was not included counts half in the next round, and less after."""
        submission = self._submission
        if submission is None:
            return
        late = self.standing.round - submission.base
        if late > self.standing.policy.stale_rounds:
            self._submission = None

    # ---- applying

    async def _apply(self, setting: Setting, seat: RoundSeat, decided: Decided) -> Standing:
        workshop = seat.workshop
        merged = await self._offload.run(lambda: workshop.whole(decided.plan, decided.hashes))
        base = await self._offload.run(lambda: self.store.load_state(self.standing.round))
        state = await self._offload.run(
            lambda: tensors.apply(self.schema, base, cast("F32", merged))
        )
        assert isinstance(decided.proof, Apply)
        standing = msgspec.structs.replace(
            self.standing,
            round=setting.number,
            root=decided.root,
            state_sha=await self._offload.run(lambda: tensors.genesis_root(self.schema, state)),
            circle=tuple(one.signer for one in decided.plan.joins),
            clip=seat.machine.member.clip,
            offsets=self._offsets(seat),
            proof=encode(decided.proof),
            parts=decided.hashes,
            codec=decided.plan.codec,
            counts=tuple(part.count for part in decided.plan.parts),
        )
        parts = {digest: workshop.merged[digest] for digest in decided.hashes}
        await self.store.save(standing, self.schema, state, parts)
        included = {one.peer for one in seat.machine.member.statuses if one.status == "included"}
        if bytes(self._mesh.id) in included or not seat.machine.member.statuses:
            self._submission = None
        elif self._submission is not None:
            halved = msgspec.structs.replace(self._submission, weight=self._submission.weight / 2)
            self._submission = halved
        self._past = workshop
        # Who was left out of this roster is asked in again, once: it may have been slow.
        self._wanting |= set(self.standing.circle) - set(standing.circle)
        return standing

    def _offsets(self, seat: RoundSeat) -> tuple[float, ...]:
        statuses = seat.machine.member.statuses
        arrived = [one.arrival_s for one in statuses if one.arrival_s >= 0]
        late = sum(one.status == "late" for one in statuses)
        if not statuses:
            return self.standing.offsets
        count = len(statuses)
        deadline = seat.deadline_s
        return Offsets(self.standing.offsets).after(
            arrived, late=late, closed_s=deadline, n=count
        ).offsets  # fmt: skip

    def _stand(self, standing: Standing) -> None:
        self.standing = standing
        news, self._news = self._news, trio.Event()
        news.set()

    # ---- others

    def where(self, asker: bytes) -> Where:
        """For a member that asks: it is asked in from the next round on."""
        standing = self.standing
        if asker not in standing.circle and len(self._wanting) < MEMBERS_MAX:
            self._wanting.add(asker)
        return Where(
            standing.round, standing.root, standing.state_sha,
            self.store.state_path(standing.round).stat().st_size, standing.circle, standing.clip,
            standing.policy.digest(), sha256(standing.schema).digest(),
        )  # fmt: skip

    def receive(self, sender: bytes, packet: Packet) -> None:
        """A packet for this federation, of whatever round."""
        message = decode_untrusted(packet.body)
        seat = self._seat
        if message.round == self.standing.round and self.standing.proof:
            if not isinstance(message, Apply) and sender != bytes(self._mesh.id):
                proof = decode_untrusted(self.standing.proof)
                self._post.send(sender, self.ident, unsigned(proof))
        elif message.round == self.standing.round + 1 and seat is not None:
            seat.receive(sender, packet)
        elif message.round > self.standing.round:
            # For a round that has not begun here: the last one is being written, or we are behind.
            if len(self._ahead) < AHEAD_MAX:
                self._ahead.append((sender, packet))
            if message.round > self.standing.round + 1:
                self._ask_now.set()

    def _give_early(self, seat: RoundSeat, sender: bytes, packet: Packet) -> None:
        try:
            seat.receive(sender, packet)
        except DecodeError as error:
            log.info("round_message_refused", extra={"f": {"why": str(error)}})

    def serve(self, caller: bytes, wanted: Wanted) -> bytes | mmap.mmap | None:
        """Bytes of the round under way, of the last one, or the state."""
        group = self.standing.group or None
        if self._mesh.trust(PeerId(caller), group) == "none":
            return None
        if wanted.merged and wanted.part == STATE_PART:
            return _mapped(self.store.state_path(self.standing.round))
        found = None if self._seat is None else self._seat.serve(caller, wanted)
        if found is None and wanted.merged and self._past is not None:
            found = self._past.merged_part(wanted.sha256)
        return found

    async def _look_out(self) -> None:
        """Ask the circle from time to time whether the others are further."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._ask_now.wait()
            self._ask_now = trio.Event()
            if await self._catch_up():
                self._behind.set()
                return

    async def _catch_up(self) -> bool:
        """Go on where a quorum of the circle is; whether we were behind."""
        standing = self.standing
        answers = await ask_where(self._mesh, self.ident, standing.circle)
        further = Counter(where for where in answers.values() if where.round > standing.round + 1)
        if not further:
            return False
        where, votes = further.most_common(1)[0]
        others = len(standing.circle) - 1
        if votes < min(quorum_of(len(standing.circle), standing.policy.quorum), max(1, others)):
            return False
        holders = [peer for peer, one in answers.items() if one == where]
        state = await fetch_state(
            self._post, self._offload, self.ident, self.schema, where, holders
        )
        if state is None:
            return False
        fresh = msgspec.structs.replace(
            standing, round=where.round, root=where.root, state_sha=where.state_sha,
            circle=where.circle, clip=where.clip, proof=b"", parts=(), counts=(),
        )  # fmt: skip
        await self.store.save(fresh, self.schema, state, {})
        self._submission = None
        self._tell(Tell("round.caught_up", f"round {where.round}"))
        self._stand(fresh)
        return True


def _mapped(path: Path) -> mmap.mmap:
    """A file that nobody changes in place."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


async def _first(*events: trio.Event) -> None:
    """Wait until one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


async def ask_where(mesh: Mesh, federation: bytes, peers: tuple[bytes, ...]) -> dict[bytes, Where]:
    """Where members say they are; who is none, or cannot be reached, is left out."""
    found: dict[bytes, Where] = {}

    async def ask(peer: bytes) -> None:
        try:
            where = await mesh.rpc.call(PeerId(peer), KNOCK, Knock(federation), timeout_s=KNOCK_S)
        except P2pError:
            return
        if where.round >= 0:
            found[peer] = where

    async with trio.open_nursery() as nursery:
        for peer in peers:
            if peer != bytes(mesh.id):
                nursery.start_soon(ask, peer)
    return found


async def fetch_state(
    post: Post, offload: Offload, federation: bytes, schema: tensors.Schema, where: Where,
    holders: list[bytes],
) -> dict[str, Array] | None:  # fmt: skip
    """The state that `where` names, from one of `holders`; None: nobody gives it now."""
    for holder in holders:
        data = await post.fetch_state(holder, federation, where.nbytes)
        if data is None:
            continue

        def read(data: bytes = data) -> dict[str, Array] | None:
            try:
                state = safetensors.view(data, safetensors.read_header_untrusted(data))
                right = tensors.genesis_root(schema, state) == where.state_sha
            except (DecodeError, UsageError):
                return None
            return state if right else None

        state = await offload.run(read)
        if state is not None:
            return state
        log.warning("round_state_wrong", extra={"f": {"from": holder[:4].hex()}})
    return None


def model_federation(group: bytes, name: str) -> bytes:
    """Id of a model's federation."""
    return federation_id(group, name)


def resolved_rule(policy: Policy) -> str:
    """The rule that all rounds of a federation use."""
    return rules.resolve(cast("rules.Rule", policy.rule), root_data=policy.root_data is not None)
