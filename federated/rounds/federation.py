"""A model that members train together, one round after the other.

The loop of a federation runs as long as this machine is its member. A trainer waits for a state,
trains, submits; the round ends without who is late, whose update counts half in the next one. Who
was away asks the circle where the others are, and goes on from there.
Source: docs/specs/rounds.md s.7.
"""

from __future__ import annotations

import dataclasses
import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np
import trio

from federated.errors import RoundError, UsageError, is_full
from federated.rounds import applying, beginning, catching_up
from federated.rounds.ahead import Ahead, Reminders
from federated.rounds.attendance import Attendance
from federated.rounds.faults import line_of
from federated.rounds.federation_store import KEPT_STATES
from federated.rounds.knocking import NOWHERE, Answer, Where
from federated.rounds.numeric import tensors
from federated.rounds.owners import admits
from federated.rounds.post import STATE_PART
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Update
from federated.rounds.protocol.orders import Tell
from federated.rounds.protocol.policy import MEMBERS_MAX
from federated.rounds.protocol.wire import Apply, decode_untrusted, unsigned
from federated.rounds.seat import RoundSeat, link_of
from federated.rounds.statefile import load_state, map_file
from federated.rounds.submissions import Submission, check_figures, check_update, left_over
from federated.rounds.waiting import first_of
from federated.rounds.workshop import Workshop
from p2p.errors import DecodeError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from federated.rounds.federation_store import FederationStore, Standing
    from federated.rounds.numeric.dtypes import F32, Array
    from federated.rounds.post import Post, Wanted
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.orders import Decided, Vote
    from federated.rounds.protocol.wire import Packet
    from federated.seams import Mesh
    from p2p.env import Env, Offload

log = logging.getLogger("covey.rounds")

LOOK_S: Final = 10.0
"""How often a member whose round does not end asks the others whether they are further."""
LOOK_MIN_S: Final = 2.0
"""How soon it asks again, whoever says that there is something to hear."""
FULL_RETRY_S: Final = 10.0
FULL: Final = "storage: the disk is full; free space on it, it goes on by itself"
FAULT_RETRY_S: Final = 60.0
BANNED: Final = (
    "signed two contradicting messages: it takes no part any more; leaving the model here and"
    " joining it again takes that back"
)


class Federation:
    """One federation at this member.

    Args:
        ident: its id.
        standing: the last applied round.
        store: rows and files.
        mesh, post, env, offload: as everywhere.
        tell: hears what a person may want to see.
        ended: hears of each round with its outcome.
        fault: why it cannot run: what was kept of it cannot be read.
    """

    def __init__(
        self, ident: bytes, standing: Standing, store: FederationStore, mesh: Mesh, post: Post,
        env: Env, offload: Offload, tell: Callable[[Tell], None],
        ended: Callable[[Standing, Setting, RoundSeat, float], Awaitable[None]], *, fault: str = "",
    ) -> None:  # fmt: skip
        self.ident = ident
        self.standing = standing
        self.store = store
        self.schema = tensors.Schema(())
        if not fault:
            self.schema = tensors.decode_schema_untrusted(standing.schema)
        self._schema_sha = sha256(standing.schema).digest()
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
        self._ahead = Ahead()
        self._reminders = Reminders()
        self.attendance = Attendance()
        self._settling = trio.Lock()
        self.scope = trio.CancelScope()
        self.left = trio.Event()
        self.fault = fault
        self.last_abort = fault

    # ---- what trainers ask

    async def submit(self, base: int, update: F32, weight: float, metrics: dict[str, float]) -> int:
        """Take a trainer's update; how many rounds late it is.

        Args:
            base: the round whose state it began with.
            update: float32[n], finite: new state minus that one.
            weight: above 0, such as the number of examples.
            metrics: figures for people, such as loss; 32 at most, finite.

        Raises:
            UsageError: of another length, not finite or too long, a weight or metric that cannot
                be.
            RoundError: `stale`: too many rounds late; `unknown`: the model was left.
        """
        self.check_running()
        check_figures(weight, metrics)
        await self._offload.run(lambda: check_update(self.schema, update))
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
        self.check_running()
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
        """The first applied round after `after`.

        Raises:
            RoundError: `unknown`: the model was left.
        """
        while self.standing.round <= after:
            self.check_running()
            await self._news.wait()
        return self.standing

    def check_running(self) -> None:
        """Refuse what a model that does not run here cannot do.

        Raises:
            RoundError: `unknown`: it was left, or what was kept of it cannot be read.
        """
        if self.fault:
            raise RoundError(
                "unknown",
                f"this model is stopped here, as what was kept of it cannot be read: {self.fault};"
                " leave it and join it again",
            )
        if self.left.is_set():
            raise RoundError("unknown", "this machine has left the model: join it again")

    @property
    def phase(self) -> str:
        """What the round under way does."""
        if self.fault:
            return "stopped"
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
        """Take part until cancelled; whatever goes wrong here ends nothing else."""
        try:
            with self.scope:
                self._post.seat(self.ident, self)
                while True:
                    await self._one_round_or_pause()
        except* Exception:  # a fault met while it was being left
            log.exception("round_fault")
        finally:
            self._post.unseat(self.ident, self)
            self._seat = None
            self.left.set()
            self._wake()

    async def _one_round_or_pause(self) -> None:
        """A full disk ends the attempt before anything is said that could not be kept."""
        try:
            await self._one_round()
        except Exception as error:
            full = is_full(error)
            self._seat = None
            self.last_abort = FULL if full else f"a fault on this machine: {line_of(error)}"
            self._tell(Tell("round.storage" if full else "round.fault", self.last_abort))
            log.exception("round_disk_full" if full else "round_fault")
            await trio.sleep(FULL_RETRY_S if full else FAULT_RETRY_S)

    async def _one_round(self) -> None:
        setting = self._setting()
        self.store.begin(setting.number)
        promised, vote = await self._promised(setting.number)
        workshop = await self._workshop(setting)
        # Who has not the last update, row 0 of the rules, merges nothing.
        merges = workshop.has_reference or not self.standing.round
        if merges:
            square = await self._offload.run(workshop.reference_square)
            setting = dataclasses.replace(setting, reference_square=square)
        link = link_of(self._post, setting, merges=merges)
        machine = Machine(setting, link, promised=promised, vote=vote)
        seat = RoundSeat(
            setting, machine, workshop, self._post, self._env, self._offload, self.store,
            self._heard,
        )  # fmt: skip
        self._behind = trio.Event()
        self._seat = seat
        self.attendance = Attendance(setting)
        self._drop_stale()
        self._hand_in()
        began = self._env.now()
        self._ahead.replay(seat, setting.number)
        if bytes(self._mesh.id) not in setting.circle:
            self._ask_now.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seat.drive)
            nursery.start_soon(self._look_out)
            await first_of(seat.outcome.finished, self._behind)
            nursery.cancel_scope.cancel()
        self._seat = None
        if self.standing.round >= setting.number:
            return  # we caught up meanwhile: whatever was decided here, the others are further
        if seat.outcome.decided is not None:
            await self._take(setting, seat, seat.outcome.decided, began)
        elif seat.outcome.failure is not None:
            self._submission = None
            self._tell(Tell("round.failed", str(seat.outcome.failure)))

    async def _promised(self, number: int) -> tuple[int, Vote | None]:
        promised, vote = await self.store.promised(number)
        if vote is not None and not beginning.is_about(vote, self.standing.root):
            log.warning("round_vote_of_another_base", extra={"f": {"round": number}})
            vote = None
        return promised, vote

    def _heard(self, told: Tell) -> None:
        if told.kind == "round.aborted":
            self.last_abort = told.detail
        self.attendance.told(told.kind)
        self._tell(told)

    def _setting(self) -> Setting:
        wanting = self._wanting
        self._wanting = set()  # who still wants in says so again
        return beginning.setting_after(
            self._mesh, self.ident, self.standing, self.schema.size, wanting, self._admits
        )

    async def _workshop(self, setting: Setting) -> Workshop:
        standing = self.standing
        kept = await self._offload.run(self.store.parts_kept)
        reference = await self._offload.run(lambda: beginning.reference_of(standing, kept))
        base = await self._offload.run(lambda: self.store.load_state(standing.round))
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

    def _drop_stale(self) -> None:
        """An update that was not included counts half in the next round, and less after."""
        submission, standing = self._submission, self.standing
        if submission and standing.round - submission.base > standing.policy.stale_rounds:
            self._submission = None

    # ---- a round that was decided

    async def _take(
        self, setting: Setting, seat: RoundSeat, decided: Decided, began: float
    ) -> None:
        """Apply it, stand on it, and only then whatever may fail."""
        before = self.standing
        made = await self._offload.run(
            lambda: applying.applied(before, self.schema, self.store, seat, decided)
        )
        if not await self._settle(before, made.standing, made.state, made.parts):
            return
        if self._submission is not None:
            statuses = seat.machine.member.statuses
            self._submission = left_over(self._submission, statuses, bytes(self._mesh.id))
        self._past = seat.workshop
        # Who was left out of this roster is asked in again, once: it may have been slow.
        self._wanting |= set(before.circle) - set(made.standing.circle)
        for peer in set(made.standing.banned) - set(before.banned):
            self._tell(Tell("member.banned", BANNED, peer))
        self.last_abort = ""
        await self._note(made.standing, setting, seat, began)
        self._wake()
        await self.store.sweep(made.standing)

    async def _settle(
        self, before: Standing, after: Standing, state: Mapping[str, Array],
        parts: Mapping[bytes, bytes],
    ) -> bool:  # fmt: skip
        """Keep a round and stand on it; whether we did, as we still stood where it begins.

        A decision and catching up come from two sides: who of them is second is dropped, or two
        states would be added up that do not follow each other.
        """
        async with self._settling:
            if self.standing is not before:
                return False
            # Not cut in two: a round that is kept and not stood on would begin again.
            with trio.CancelScope(shield=True):
                await self.store.save(after, self.schema, state, parts)
            self.standing = after
            self._reminders.clear()
        return True

    async def _note(
        self, standing: Standing, setting: Setting, seat: RoundSeat, began: float
    ) -> None:
        """The history is for people: a round that stands is not undone where it cannot be noted."""
        try:
            await self._ended(standing, setting, seat, began)
        except Exception:
            log.exception("round_not_noted")

    def _wake(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    # ---- others

    def _admits(self, peer: bytes) -> bool:
        """Whether a peer may take part, or see anything of this."""
        standing = self.standing
        if peer in standing.banned:
            return False
        several = standing.policy.allow_plain
        return admits(self._mesh, standing.group or None, peer, several=several)

    def where(self, asker: bytes) -> Answer:
        """For a member that asks: it is asked in from the next round on."""
        standing = self.standing
        if self.fault or not self._admits(asker):
            return NOWHERE
        if asker not in standing.circle and len(self._wanting) < MEMBERS_MAX:
            self._wanting.add(asker)
        try:
            nbytes = self.store.state_path(standing.round).stat().st_size
        except OSError:
            return NOWHERE
        where = Where(
            standing.round, standing.root, standing.state_sha, nbytes, standing.circle,
            standing.clip, standing.policy.digest(), self._schema_sha,
        )  # fmt: skip
        return Answer(where)

    def receive(self, sender: bytes, packet: Packet) -> None:
        """A packet for this federation, of whatever round."""
        if not self._admits(sender):
            return
        message = decode_untrusted(packet.body)
        seat = self._seat
        if message.round == self.standing.round and self.standing.proof:
            asks = not isinstance(message, Apply) and sender != bytes(self._mesh.id)
            if asks and self._reminders.due(self._env.now(), sender):
                proof = decode_untrusted(self.standing.proof)
                self._post.send(sender, self.ident, unsigned(proof))
        elif message.round == self.standing.round + 1 and seat is not None:
            self.attendance.came(sender)
            seat.receive(sender, packet)
        elif message.round > self.standing.round:
            # For a round that has not begun here: the last one is being written, or we are behind.
            self._ahead.keep(sender, packet)
            if message.round > self.standing.round + 1:
                self._ask_now.set()

    def serve(self, caller: bytes, wanted: Wanted) -> bytes | mmap.mmap | None:
        """Bytes of the round under way, of the last one, or the state."""
        if not self._admits(caller):
            return None
        if wanted.merged and wanted.part == STATE_PART:
            try:
                return map_file(self.store.state_path(self.standing.round))
            except (OSError, DecodeError):
                return None
        found = None if self._seat is None else self._seat.serve(caller, wanted)
        if found is None and wanted.merged and self._past is not None:
            found = self._past.merged_part(wanted.sha256)
        return found

    # ---- being behind

    async def _look_out(self) -> None:
        """Ask the circle from time to time whether the others are further."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._ask_now.wait()
            self._ask_now = trio.Event()
            if await self._catch_up():
                self._behind.set()
                return
            await trio.sleep(LOOK_MIN_S)

    async def _catch_up(self) -> bool:
        """Go on where a quorum of a circle is; whether we were behind."""
        standing = self.standing
        found = await catching_up.further(self._mesh, self.ident, standing, self._admits)
        if found is None:
            return False
        where, holders = found
        state = await catching_up.fetch_state(
            self._post, self._offload, self.ident, self.schema, where, holders
        )
        if state is None:
            return False
        fresh = msgspec.structs.replace(
            standing, round=where.round, root=where.root, state_sha=where.state_sha,
            circle=where.circle, clip=where.clip, proof=b"", parts=(), counts=(),
        )  # fmt: skip
        if not await self._settle(standing, fresh, state, {}):
            return False
        self._submission = None
        self._tell(Tell("round.caught_up", f"round {where.round}"))
        self._wake()
        await self.store.sweep(fresh)
        return True
