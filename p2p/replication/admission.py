"""Foreign records on their way in: what is stored, what waits, what is refused.

Checks go from cheap to dear: encoding and group, known ids, signature, cited authority, the
author's name among it, clock, chain, payload; then the fold says whether the record counts and the
body is opened. A lasting verdict depends only on the record and on control records, so that
replicas cannot differ for ever; whatever is local (our clock, our limits) only delays.

| outcome | meaning here |
|---|---|
| refused | the sender should have seen it: counted, told as `record.refused`, closed at three |
| waiting | cites control records that are not here: they are asked for by id |
| held | dated over ten minutes ahead: kept, retried when due, our clock never moved |
| suspect | contradicts a record of its log: not stored, its header becomes evidence |
| void, sealed, live | stored in that state |

The caller holds the group's turn (`keeper.turn`): should the transaction fail, the next turn reads
the authority anew from disk. Source: docs/specs/sync.md s.7.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from p2p.errors import AuthError, DecodeError
from p2p.replication.exchange_types import AdmitResult, Suspect
from p2p.replication.groups import (
    HOLD_FORK,
    HOLD_SKEW,
    Evidence,
    Held,
    Waiting,
    control_payload,
    trim_waiting,
)
from p2p.replication.hlc import ms_of, too_far_ahead
from p2p.replication.liveness import unjudged_rows
from p2p.replication.ops import Kind, Role
from p2p.replication.quarantine import make_room, quarantine_of
from p2p.replication.quota import over_headers
from p2p.replication.record import (
    LANE_CONTROL,
    LANE_DATA,
    STATE_LIVE,
    STATE_SEALED,
    STATE_STUB,
    STATE_VOID,
    BodyError,
    Record,
    RecordWire,
    decode_header_untrusted,
    decode_wire_untrusted,
    encode_wire,
    is_authority,
    lane_of,
    record_id,
    verify_decoded,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from p2p.env import Env
    from p2p.identity import Verifier
    from p2p.replication.config import ReplicationConfig
    from p2p.replication.events import Emit
    from p2p.replication.groups import Group, Groups
    from p2p.replication.ops import Payload
    from p2p.replication.quota import Quota
    from p2p.replication.record import Header
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.store import LocalRow, LogKey, LogState, RecordStore, Stored

VERIFY_BATCH: Final = 16
"""Signatures between two checkpoints: about 2 ms, and threads gain nothing (the library holds the
interpreter's lock)."""

_HERE: Final = frozenset({"live", "sealed", "void", "stub"})
"""States of what needs no second look. `erased` is none: an id that was erased before its record
came is still to be stored, as a header, or sets would differ for ever."""


class _Item(NamedTuple):
    """A record on its way, decoded as far as its header."""

    wire: RecordWire
    header: Header
    id: bytes
    peer: bytes | None


class _Neighbour(NamedTuple):
    """What stands at a place of a log."""

    id: bytes
    prev: bytes | None
    hlc: int
    header: bytes
    signature: bytes


@dataclass
class _Outcome:
    """Running totals of one call."""

    stored: int = 0
    duplicate: int = 0
    refused: int = 0
    held: int = 0
    looked_at: int = 0
    """Records that are not here and cost more than a look-up, whatever became of them."""
    missing: dict[bytes, None] = field(default_factory=dict)
    suspects: list[Suspect] = field(default_factory=list)
    close: str = ""
    admitted: list[Record] = field(default_factory=list)

    def result(self, *, throttled: bool) -> AdmitResult:
        """As the session takes it."""
        return AdmitResult(
            stored=self.stored,
            duplicate=self.duplicate,
            refused=self.refused,
            held=self.held,
            missing=tuple(self.missing),
            suspects=tuple(self.suspects),
            close=self.close,
            throttled=throttled,
        )


@dataclass
class _Round:
    """One pass over a batch: what of it is going to be stored."""

    logs: dict[LogKey, LogState]
    own: frozenset[bytes]
    """Devices of the person."""
    cited: dict[tuple[bytes, tuple[bytes, ...]], int] = field(default_factory=dict)
    """Authors and citations found good in this pass, with the highest clock cited."""
    places: dict[tuple[LogKey, int], _Neighbour] = field(default_factory=dict)
    ready: list[Record] = field(default_factory=list)
    control: list[Record] = field(default_factory=list)
    """Control records taken, in the set and beside it."""
    local: list[LocalRow] = field(default_factory=list)


class Admission:
    """Judges and stores foreign records.

    Args:
        store: where they go.
        sealer: opens bodies and observes clocks.
        verify: signature check.
        env: clocks.
        config: limits.
        groups: relations across groups.
        quota: what peers may cost.
        emit: events.
        checkpoint: lets other tasks run.
    """

    def __init__(
        self,
        *,
        store: RecordStore,
        sealer: GroupSealer,
        verify: Verifier,
        env: Env,
        config: ReplicationConfig,
        groups: Groups,
        quota: Quota,
        emit: Emit,
        checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._verify = verify
        self._env = env
        self._config = config
        self._groups = groups
        self._quota = quota
        self._emit = emit
        self._checkpoint = checkpoint
        self.on_opened: Callable[[Group, Sequence[Record]], None] = lambda group, records: None  # noqa: ARG005 - a hook
        """Called with records, their bodies open, before they are stored."""

    async def admit(
        self,
        group: Group,
        wires: Sequence[RecordWire],
        peer: bytes | None,
        *,
        from_hold: bool = False,
    ) -> tuple[AdmitResult, list[Record]]:
        """Judge a batch and store what passes, in one transaction a pass.

        Args:
            group: whose lock the caller holds.
            wires: at most a frame's records.
            peer: who brought them; None for ourselves (retries).
            from_hold: whether they come from quarantine.

        Returns:
            What became of them, and the records stored, in order.
        """
        outcome = _Outcome()
        items = self._decode(group, [(wire, peer) for wire in wires], outcome)
        while items:
            await self._pass(group, items, outcome, from_hold=from_hold)
            items = self._decode(group, self._satisfied(group), outcome)
            from_hold = False
        trim_waiting(group, self._config, self._env.now())
        throttled = self._over_rate(group, peer, outcome)
        return outcome.result(throttled=throttled), outcome.admitted

    def _over_rate(self, group: Group, peer: bytes | None, outcome: _Outcome) -> bool:
        if peer is None or peer in self._groups.own_devices():
            return False
        if not group.synced_once and group.role(peer) is not None:
            return False  # a first sync brings what years have written
        # Not what was stored alone: a signature costs as much when its record is good for nothing.
        return not self._quota.spend(peer, outcome.looked_at, self._env.now())

    def _satisfied(self, group: Group) -> list[tuple[RecordWire, bytes | None]]:
        """Waiting records whose citations are all here now."""
        authority = group.authority
        free = [
            ident
            for ident, waiting in group.waiting.items()
            if all(cited in authority for cited in waiting.missing)
        ]
        return [(w.wire, w.peer) for w in (group.waiting.pop(ident) for ident in free)]

    # --- cheap checks -------------------------------------------------------------------------

    def _decode(
        self,
        group: Group,
        wires: Sequence[tuple[RecordWire, bytes | None]],
        outcome: _Outcome,
    ) -> list[_Item]:
        items: dict[bytes, _Item] = {}
        for wire, peer in wires:
            ident = record_id(wire.header)
            try:
                header = decode_header_untrusted(wire.header)
            except DecodeError:
                self._refuse(group, peer, "encoding", ident, None, outcome)
                continue
            if (header.group or ident) != group.id:
                self._refuse(group, peer, "group", ident, header, outcome)
            elif ident in items:
                outcome.duplicate += 1
            else:
                items[ident] = _Item(wire, header, ident, peer)
        return list(items.values())

    def _refuse(
        self,
        group: Group,
        peer: bytes | None,
        reason: str,
        ident: bytes,
        header: Header | None,
        outcome: _Outcome,
    ) -> None:
        outcome.refused += 1
        outcome.looked_at += header is None
        data = {"group": group.id, "peer": peer, "reason": reason, "id": ident}
        if header is not None:
            data["author"] = header.author
        self._emit("record.refused", data)
        if peer is not None and self._quota.refuse(peer, self._env.now()):
            outcome.close = f"{self._config.refusals_max} records refused, the last for: {reason}"

    async def _pass(
        self, group: Group, items: list[_Item], outcome: _Outcome, *, from_hold: bool
    ) -> None:
        known = await self._store.known([item.id for item in items])
        bodiless = await self._bodiless(items, known)
        fresh = []
        for item in items:
            state = known.get(item.id)
            here = state in _HERE and item.id not in bodiless
            if here or (state == "held" and not from_hold):
                outcome.duplicate += 1
            else:
                fresh.append(item)
        if not fresh:
            return
        logs = {state.key: state for state in await self._store.logs(group.id)}
        run = _Round(logs, self._groups.own_devices())
        for count, item in enumerate(fresh, 1):
            await self._judge(group, item, run, outcome)
            if count % VERIFY_BATCH == 0:
                await self._checkpoint()
        await self._commit(group, run, outcome)

    async def _bodiless(self, items: Sequence[_Item], known: Mapping[bytes, str]) -> set[bytes]:
        """Records of which we have the header only, and the body comes now."""
        asked = [
            item.id
            for item in items
            if known.get(item.id) == STATE_SEALED and item.wire.envelope is not None
        ]
        rows = await self._store.fetch(asked, bodies=True) if asked else ()
        return {row.id for row in rows if row.envelope is None}

    # --- one record ---------------------------------------------------------------------------

    async def _judge(self, group: Group, item: _Item, run: _Round, outcome: _Outcome) -> None:
        outcome.looked_at += 1
        if self._ended(group, item.header):
            outcome.duplicate += 1  # not even verified
            return
        record = self._verified(group, item, outcome)
        if record is None:
            return
        if not self._cites_well(group, item, run, outcome):
            return
        if self._over_limits(group, item.header, run):
            outcome.held += 1
        elif too_far_ahead(item.header.hlc, self._env.wall_ms(), int(self._config.skew_s * 1000)):
            await self._hold(group, item, run, outcome)
        elif await self._fits(group, record, run, outcome):
            self._take(group, item, record, run, outcome)
        elif is_authority(record.kind) and self._cited(group, item.id):
            self._take_beside(group, item, record, run, outcome)

    @staticmethod
    def _ended(group: Group, header: Header) -> bool:
        """Whether a record lies where a fork has ended its log, for ever.

        An operation there may be asked for all the same, if others cite it.
        """
        if is_authority(header.kind):
            return False
        fork = group.authority.fork_seq(header.author, header.incarnation, lane_of(header.kind))
        return fork is not None and header.seq >= fork

    def _cites_well(self, group: Group, item: _Item, run: _Round, outcome: _Outcome) -> bool:
        """Whether what a record cites is here, older than it, and names its author.

        What once was so stays so for other records that cite the same: operations only come.
        """
        header = item.header
        known = run.cited.get((header.author, header.auth))
        if known is not None and header.hlc > known:
            return True
        authority = group.authority
        missing = authority.missing(header)
        if missing:
            outcome.held += 1
            outcome.missing.update(dict.fromkeys(missing))
            until = self._env.now() + self._config.pending_s
            group.waiting[item.id] = Waiting(item.wire, item.peer, missing, until)
            return False
        try:
            authority.check(header, item.id)
        except AuthError:
            self._refuse(group, item.peer, "authority", item.id, header, outcome)
            return False
        if self._stranger(group, item):
            self._refuse(group, item.peer, "stranger", item.id, header, outcome)
            return False
        if header.kind not in {Kind.JOIN, Kind.GENESIS}:  # those are named by themselves alone
            run.cited[header.author, header.auth] = header.hlc - 1
        return True

    def _verified(self, group: Group, item: _Item, outcome: _Outcome) -> Record | None:
        try:
            return verify_decoded(item.wire, item.header, item.id, self._verify)
        except BodyError:
            self._refuse(group, item.peer, "body", item.id, item.header, outcome)
            if lane_of(item.header.kind) == LANE_CONTROL:
                return None  # A control record is nothing without its payload.
            # The header is good; somebody else may have the body.
            bare = replace_envelope(item.wire, None)
            return verify_decoded(bare, item.header, item.id, self._verify)
        except AuthError:
            self._refuse(group, item.peer, "signature", item.id, item.header, outcome)
        except DecodeError:
            self._refuse(group, item.peer, "encoding", item.id, item.header, outcome)
        return None

    def _stranger(self, group: Group, item: _Item) -> bool:
        """Whether nothing the record cites names its author; a join and a genesis do themselves."""
        header = item.header
        if header.kind in {Kind.JOIN, Kind.GENESIS}:
            return False
        return not group.authority.named(header.author, header.auth)

    def _over_limits(self, group: Group, header: Header, run: _Round) -> bool:
        """Local limits: what is over them waits (is asked for again later), never refused."""
        if is_authority(header.kind):
            full = len(group.authority) >= self._config.group_ops_max
            return full and group.role(header.author) != Role.ADMIN
        if not over_headers(group, header.author, self._config, run.own):
            return False
        self._emit("quota.reached", {"group": group.id, "author": header.author})
        return True

    def _cited(self, group: Group, ident: bytes) -> bool:
        return any(ident in waiting.missing for waiting in group.waiting.values())

    def _take(
        self, group: Group, item: _Item, record: Record, run: _Round, outcome: _Outcome
    ) -> None:
        """Let the authority have it and mark it for the store."""
        if self._authorise(group, item, record, run, outcome):
            log = (record.group, record.author, record.incarnation, record.lane)
            run.places[log, record.seq] = _neighbour_of(record)
            run.ready.append(record)

    def _take_beside(
        self, group: Group, item: _Item, record: Record, run: _Round, outcome: _Outcome
    ) -> None:
        """A void operation of a forked log that others cite: kept outside the set, served by id."""
        if self._authorise(group, item, record, run, outcome):
            wire = encode_wire(item.wire)
            run.local.append(("hold", (record.id, group.id, HOLD_FORK, 0, wire)))
            outcome.held += 1

    def _authorise(
        self, group: Group, item: _Item, record: Record, run: _Round, outcome: _Outcome
    ) -> bool:
        if record.lane == LANE_DATA:
            return True
        try:
            payload: Payload | None = control_payload(item.header, item.wire.envelope)
            group.authority.add(record.id, record.head, payload)
        except DecodeError:
            self._refuse(group, item.peer, "payload", item.id, item.header, outcome)
            return False
        except AuthError:
            self._refuse(group, item.peer, "proof", item.id, item.header, outcome)
            return False
        run.control.append(record)
        return True

    # --- clock --------------------------------------------------------------------------------

    async def _hold(self, group: Group, item: _Item, run: _Round, outcome: _Outcome) -> None:
        """Quarantine: keep it for later, without letting it near our clock."""
        outcome.held += 1
        wire = encode_wire(item.wire)
        due_ms = ms_of(item.header.hlc) - int(self._config.skew_s * 1000)
        held = await quarantine_of(self._store, group)
        newcomer = Held(item.id, item.header.author, due_ms, len(wire))
        self._emit(
            "clock.skew",
            {"group": group.id, "author": newcomer.author, "id": item.id, "due_ms": due_ms},
        )
        welcome, leaver = make_room(list(held.values()), newcomer, self._config)
        if leaver is not None:
            held.pop(leaver, None)
            run.local = [row for row in run.local if row[1][0] != leaver]
            run.local.append(("hold-", (leaver,)))
        if welcome:
            held[item.id] = newcomer
            run.local.append(("hold", (item.id, group.id, HOLD_SKEW, due_ms, wire)))

    async def retry_held(self, group: Group) -> tuple[AdmitResult, list[Record]]:
        """Judge quarantined records that are due now."""
        wall_ms = self._env.wall_ms()
        held = await quarantine_of(self._store, group)
        ids = {one.id for one in held.values() if one.due_ms <= wall_ms}
        if not ids:
            return AdmitResult(), []
        rows = await self._store.local("hold", group.id)
        due = [row for row in rows if row[1][2] == HOLD_SKEW and row[1][0] in ids]
        wires = [decode_wire_untrusted(row[1][4]) for row in due if isinstance(row[1][4], bytes)]
        result, admitted = await self.admit(group, wires, None, from_hold=True)
        await self._store.admit(group.id, [], local=[("hold-", (row[1][0],)) for row in due])
        for ident in ids:
            held.pop(ident, None)
        return result, admitted

    # --- chain --------------------------------------------------------------------------------

    async def _fits(self, group: Group, record: Record, run: _Round, outcome: _Outcome) -> bool:
        """Whether the record's place is free and its neighbours follow it; else it is evidence."""
        log = (record.group, record.author, record.incarnation, record.lane)
        fork = group.authority.fork_seq(record.author, record.incarnation, record.lane)
        if fork is not None and record.seq >= fork and record.kind != Kind.GENESIS:
            outcome.duplicate += 1  # The log ended there, everywhere and for ever.
            return False
        here = _neighbour_of(record)
        occupant = await self._at(run, log, record.seq)
        if occupant is not None and occupant.id == record.id:
            return True  # Its body comes later than its header.
        if occupant is not None:
            same = occupant.prev == record.prev
            self._contradiction(group, log, record.seq, occupant, here, outcome, first=same)
            return False
        before = await self._at(run, log, record.seq - 1)
        if before is not None and (record.prev != before.id or record.hlc <= before.hlc):
            follows = record.prev == before.id
            self._contradiction(group, log, record.seq - 1, before, here, outcome, first=follows)
            return False
        after = await self._at(run, log, record.seq + 1)
        if after is not None and (after.prev != record.id or after.hlc <= record.hlc):
            follows = after.prev == record.id
            self._contradiction(group, log, record.seq, here, after, outcome, first=follows)
            return False
        return True

    async def _at(self, run: _Round, log: LogKey, seq: int) -> _Neighbour | None:
        found = run.places.get((log, seq))
        state = run.logs.get(log)
        if found is not None or seq < 1 or state is None or seq > state.max_seq:
            return found
        row = await self._store.at(log, seq)
        if row is None:
            return None
        found = run.places[log, seq] = _neighbour_of_stored(row)
        return found

    def _contradiction(
        self,
        group: Group,
        log: LogKey,
        seq: int,
        ours: _Neighbour,
        theirs: _Neighbour,
        outcome: _Outcome,
        *,
        first: bool,
    ) -> None:
        known = group.evidence.get(log)
        if known is None or seq < known.seq or (seq == known.seq and first and not known.first):
            group.evidence[log] = Evidence(
                seq, ours.header, ours.signature, theirs.header, theirs.signature, first
            )
        # A break between neighbours says that the lower place differs: look from there downwards.
        at_one_place = seq == decode_header_untrusted(theirs.header).seq
        same_seq = at_one_place and seq == decode_header_untrusted(ours.header).seq
        outcome.suspects.append(Suspect(log, seq if same_seq else seq + 1, first))

    # --- store --------------------------------------------------------------------------------

    async def _commit(self, group: Group, run: _Round, outcome: _Outcome) -> None:
        if not run.ready and not run.local:
            return
        batch = self._dressed(group, run.ready)
        self.on_opened(group, batch)
        local = [*run.local, *unjudged_rows(group, run.control)]
        verdicts = await self._store.admit(group.id, batch, local)
        for record, verdict in zip(batch, verdicts, strict=True):
            if verdict.outcome in {"stored", "body", "erased"}:
                outcome.stored += 1
                outcome.admitted.append(record)
                self._sealer.observe(record.hlc)
            elif verdict.outcome == "fork":
                outcome.suspects.append(
                    Suspect(
                        (record.group, record.author, record.incarnation, record.lane),
                        record.seq,
                        first=False,
                    )
                )
            else:
                outcome.duplicate += 1
        group.note_stored(Counter(record.author for record in outcome.admitted))

    def _dressed(self, group: Group, records: Sequence[Record]) -> list[Record]:
        """Add what the store writes beside the record: state, plain body, owner, relation."""
        if not records:
            return []
        standing = group.standing
        own = self._groups.own_devices()
        relations: dict[bytes, tuple[bytes, str]] = {}
        dressed = []
        for record in records:
            if record.author not in relations:
                relations[record.author] = (
                    standing.owner(record.author),
                    self._groups.relation(group, record.author, own),
                )
            owner, relation = relations[record.author]
            counts = standing.live(record.head, record.id) and not self._over_policy(group, record)
            if group.erasure_of(record.id, record.author) is None:
                plain, state = self._opened(group, record)
                envelope = record.envelope
            else:
                plain, state, envelope = None, STATE_STUB, None
            dressed.append(
                Record(
                    record.id,
                    record.head,
                    record.header,
                    record.signature,
                    envelope,
                    owner,
                    plain,
                    state if counts else STATE_VOID,
                    relation,
                )
            )
        return dressed

    def _over_policy(self, group: Group, record: Record) -> bool:
        limits = group.standing.policy()
        if record.lane == LANE_DATA:
            return record.seq > limits.data_records
        return not is_authority(record.kind) and record.seq > limits.control_records

    def _opened(self, group: Group, record: Record) -> tuple[bytes | None, str]:
        if record.lane == LANE_CONTROL:
            return None, STATE_LIVE
        if record.envelope is None:
            return None, STATE_SEALED  # It waits for its body as others do for their key.
        try:
            plain = self._sealer.open_body(record)
        except BodyError:
            # Stored all the same: whoever relays it cannot know. Held against the author.
            self._emit(
                "record.unopened", {"group": group.id, "author": record.author, "id": record.id}
            )
            return None, STATE_SEALED
        if plain is None:
            self._emit("key.missing", {"group": group.id, "id": record.id})
            return None, STATE_SEALED
        return plain, STATE_LIVE


def replace_envelope(wire: RecordWire, envelope: bytes | None) -> RecordWire:
    """The same header with another envelope."""
    return RecordWire(wire.header, wire.signature, envelope)


def _neighbour_of(record: Record) -> _Neighbour:
    return _Neighbour(record.id, record.prev, record.hlc, record.header, record.signature)


def _neighbour_of_stored(row: Stored) -> _Neighbour:
    header = decode_header_untrusted(row.header)
    return _Neighbour(row.id, header.prev, header.hlc, row.header, row.signature)
