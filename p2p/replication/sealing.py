"""Turns drafts into signed records, and opens the bodies of others.

`GroupSealer` is the `store.Sealer` of a node. It runs inside the writer's transaction, so it holds
no state that a rollback could leave wrong: place and predecessor come from the store with each
call, and of its own it changes the clock only, which may run ahead but never back. The authority
learns of an own control record after the commit, like of anybody's.
Source: docs/specs/record.md s.3, s.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2p.errors import TransientError, UsageError
from p2p.replication.epoch import epoch_key
from p2p.replication.hlc import Clock
from p2p.replication.record import (
    BODY_BYTES_MAX,
    DOMAIN_RECORD,
    KIND_GENESIS,
    LANE_CONTROL,
    VERSION,
    BodyError,
    Envelope,
    Header,
    Record,
    body_commit,
    encode_header,
    is_authority,
    lane_of,
    record_id,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from p2p.identity import Signer
    from p2p.replication.authority import Authority
    from p2p.replication.store import Draft, LogKey, Position, Verified
    from p2p.replication.store import Envelope as StoredEnvelope

DOMAIN_AEAD: Final = b"covey/aead/1\0"
SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_DATA_KEY_BYTES: Final = 32
# A data key is drawn for one record and used once, so its nonce need not vary.
_ZERO_NONCE: Final = bytes(_NONCE_BYTES)


class KeyMissing(TransientError):
    """No epoch key of the group is here yet, so nothing can be written; a member shares one."""


class SealerEnv(Protocol):
    """The part of `p2p.env.Env` a sealer needs."""

    rng: random.Random

    def wall_ms(self) -> int:
        """Unix milliseconds."""
        ...


@dataclass(frozen=True, slots=True)
class ControlDraft:
    """A control record, or any other, before it has a place. Satisfies `store.Draft`."""

    kind: int
    body: bytes
    key_tag: bytes | None = None
    supersedes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record will stand. Satisfies `store.Position`."""

    log: LogKey
    seq: int
    prev: bytes | None
    hlc_min: int


@dataclass(slots=True)
class _GroupState:
    authority: Authority
    incarnations: list[int]
    """Of the control and of the data log."""
    owner: bytes
    heads: tuple[bytes, ...]
    """What our data records cite, as of the last `advance`."""
    epochs: dict[bytes, bytes] = field(default_factory=dict)
    """Epoch id 16 -> secret 64."""
    current: bytes | None = None


def aead_context(group: bytes, author: bytes, incarnation: int, seq: int) -> bytes:
    """Associated data of a body: a ciphertext copied to another author or place does not open."""
    place = incarnation.to_bytes(4, "big") + seq.to_bytes(8, "big")
    return DOMAIN_AEAD + group + author + place


def seal_body(body: bytes, secret: bytes, epoch: bytes, context: bytes, rand: bytes) -> Envelope:
    """Encrypt a body under a fresh data key and wrap that under the epoch key.

    Args:
        body: plain body.
        secret: the epoch's secret.
        epoch: its 16-byte id.
        context: `aead_context` of the record.
        rand: 60 random bytes: salt, data key, wrap nonce.
    """
    salt, data_key, nonce = rand[:16], rand[16:48], rand[48:60]
    ct = ChaCha20Poly1305(data_key).encrypt(_ZERO_NONCE, body, context)
    sealed_key = ChaCha20Poly1305(epoch_key(secret)).encrypt(nonce, data_key, context)
    return Envelope(salt, epoch, nonce + sealed_key, ct)


def open_body(envelope: StoredEnvelope, secret: bytes, context: bytes) -> bytes:
    """Decrypt a body.

    Raises:
        BodyError: it does not open: made under another key, author or place.
    """
    if envelope.wrap is None:
        raise BodyError("record body: a control record is not encrypted")
    nonce, sealed_key = envelope.wrap[:_NONCE_BYTES], envelope.wrap[_NONCE_BYTES:]
    try:
        data_key = ChaCha20Poly1305(epoch_key(secret)).decrypt(nonce, sealed_key, context)
        return ChaCha20Poly1305(data_key).decrypt(_ZERO_NONCE, envelope.ct, context)
    except InvalidTag as error:
        raise BodyError("record body: does not open with its epoch's key") from error


def sign_record(
    identity: Signer,
    group: bytes | None,
    draft: Draft,
    at: Position,
    hlc: int,
    auth: tuple[bytes, ...],
    envelope: Envelope,
) -> Record:
    """Put a header around an envelope and sign it.

    Args:
        identity: the author.
        group: None for a genesis.
        draft: kind, cell and superseded ids; its body is in the envelope already.
        at: log, seq and predecessor.
        hlc: time of the record.
        auth: A ops it cites, ascending.
        envelope: the detachable part.
    """
    packed = envelope.encode()
    head = Header(
        version=VERSION,
        kind=draft.kind,
        group=group,
        author=identity.id,
        incarnation=at.log[2],
        seq=at.seq,
        prev=at.prev,
        hlc=hlc,
        auth=auth,
        key_tag=draft.key_tag,
        supersedes=tuple(draft.supersedes),
        body_commit=body_commit(packed),
        body_size=len(packed),
        flags=0,
    )
    header = encode_header(head)
    return Record(
        id=record_id(header),
        head=head,
        header=header,
        signature=identity.sign(DOMAIN_RECORD, header),
        envelope=envelope,
        owner=identity.id,
        plain=draft.body,
        relation="own",
    )


class GroupSealer:
    """Seals what this device writes and opens what its groups wrote.

    Args:
        identity: this device.
        env: clock and random numbers.
    """

    def __init__(self, identity: Signer, env: SealerEnv) -> None:
        self._identity = identity
        self._env = env
        self._clock = Clock()
        self._groups: dict[bytes, _GroupState] = {}

    @property
    def device(self) -> bytes:
        """The device key this sealer signs with."""
        return self._identity.id

    @property
    def hlc(self) -> int:
        """The highest time issued or observed."""
        return self._clock.last

    def observe(self, hlc: int) -> None:
        """Take note of an admitted record's time, or of our own last one after a start."""
        self._clock.observe(hlc)

    # Groups and their keys.

    def load_group(
        self,
        group: bytes,
        authority: Authority,
        *,
        incarnation: int,
        data_incarnation: int | None = None,
    ) -> None:
        """Make a group writable once an epoch key follows; again with other numbers to change them.

        Args:
            group: the group.
            authority: its A ops; control records cite its heads, data records those it had at the
                last `advance`.
            incarnation: of our control log, see `hlc.next_incarnation`.
            data_incarnation: of our data log, None for the same.
        """
        data = incarnation if data_incarnation is None else data_incarnation
        state = self._groups.get(group)
        if state is None:
            heads = authority.heads(self._identity.id)
            self._groups[group] = _GroupState(
                authority, [incarnation, data], self._identity.id, heads
            )
        else:
            state.authority, state.incarnations = authority, [incarnation, data]

    def drop_group(self, group: bytes) -> None:
        """Forget a group and its keys."""
        self._groups.pop(group, None)

    def set_epoch(self, group: bytes, epoch: bytes, secret: bytes, *, current: bool = True) -> None:
        """Learn an epoch's secret.

        Args:
            group: a loaded group.
            epoch: the epoch's 16-byte id.
            secret: 64 bytes, checked against the epoch's commitment.
            current: whether to write under it from now on.
        """
        state = self._state(group)
        state.epochs[epoch] = secret
        if current or state.current is None:
            state.current = epoch

    def advance(self, group: bytes) -> None:
        """From now on data records cite the A ops known by now.

        To be called when the keys that came with them are set, never before: what cites a removal
        must not be sealed under the key that the removed member holds.
        """
        state = self._state(group)
        state.heads = state.authority.heads(self._identity.id)

    def set_owner(self, group: bytes, owner: bytes) -> None:
        """The owner key this device published in the group: stamped on what it writes."""
        self._state(group).owner = owner

    def epochs(self, group: bytes) -> dict[bytes, bytes]:
        """The secrets held: epoch id 16 -> secret 64."""
        return dict(self._state(group).epochs)

    def current_epoch(self, group: bytes) -> bytes | None:
        """Id of the epoch written under, None while we have no key."""
        return self._state(group).current

    def _state(self, group: bytes) -> _GroupState:
        state = self._groups.get(group)
        if state is None:
            raise KeyError(f"group {group.hex()} is not loaded here")
        return state

    # store.Sealer

    def log(self, group: bytes, lane: int) -> LogKey:
        """Our own log in `group`, with the incarnation in force.

        Raises:
            KeyError: the group is unknown here.
        """
        return (group, self._identity.id, self._state(group).incarnations[lane], lane)

    def seal(self, draft: Draft, at: Position) -> Record:
        """Encrypt, sign and date a draft at the place the store gives.

        Raises:
            KeyError: the group is unknown here.
            KeyMissing: a data record, and no epoch key has come yet.
            UsageError: the body is over its limit, or the draft is of the other lane.
        """
        state = self._state(at.log[0])
        # In the writer's thread: the heads are read before the key, and were set after it.
        control = at.log[3] == LANE_CONTROL
        heads = state.authority.heads(self._identity.id) if control else state.heads
        return self._seal(draft, at, heads)

    def seal_batch(
        self, group: bytes, drafts: Sequence[Draft], seq: int, prev: bytes | None, hlc_min: int
    ) -> list[Record]:
        """Seal control records that belong together, each citing the A ops before it.

        For what must arrive whole, such as a removal with its new epoch. The caller stores them
        with `RecordStore.admit` in one transaction and is the only writer of the control log.

        Args:
            group: a loaded group.
            drafts: control drafts, in order.
            seq: place of the first.
            prev: id of the record at seq - 1.
            hlc_min: its hlc.
        """
        log = self.log(group, LANE_CONTROL)
        heads = self._state(group).authority.heads(self._identity.id)
        sealed: list[Record] = []
        for draft in drafts:
            record = self._seal(draft, Place(log, seq, prev, hlc_min), heads)
            sealed.append(record)
            seq, prev, hlc_min = seq + 1, record.id, record.hlc
            if is_authority(draft.kind):
                heads = (record.id,)  # it cites the former heads, so it alone reaches them all
        return sealed

    def _seal(self, draft: Draft, at: Position, auth: tuple[bytes, ...]) -> Record:
        group, _, incarnation, lane = at.log
        if len(draft.body) > BODY_BYTES_MAX:
            raise UsageError(f"body of {len(draft.body)} bytes; the limit is {BODY_BYTES_MAX}")
        if draft.kind == KIND_GENESIS or lane_of(draft.kind) != lane:
            raise UsageError(f"kind {draft.kind} does not belong into lane {lane}")
        state = self._state(group)
        if lane == LANE_CONTROL:
            envelope = Envelope(self._env.rng.randbytes(SALT_BYTES), None, None, draft.body)
        else:
            envelope = self._seal_data(draft, group, state, incarnation, at.seq)
        # An hlc exceeds prev's and every cited op's. Both were observed when admitted; the store's
        # word is taken as well, in case it knows more after a restart.
        self._clock.observe(max(at.hlc_min, state.authority.hlc_max))
        hlc = self._clock.tick(self._env.wall_ms())
        record = sign_record(self._identity, group, draft, at, hlc, auth, envelope)
        return _with_owner(record, state.owner)

    def _seal_data(
        self, draft: Draft, group: bytes, state: _GroupState, incarnation: int, seq: int
    ) -> Envelope:
        if state.current is None:
            raise KeyMissing(
                "no key of this group has arrived yet: keep this device connected to a member"
            )
        secret = state.epochs[state.current]
        context = aead_context(group, self._identity.id, incarnation, seq)
        rand = self._env.rng.randbytes(SALT_BYTES + _DATA_KEY_BYTES + _NONCE_BYTES)
        return seal_body(draft.body, secret, state.current, context, rand)

    def open_body(self, record: Verified) -> bytes | None:
        """The plain body of a data record, None while its epoch's key is missing.

        Raises:
            BodyError: the key is here and the body does not open: the author's fault.
            UsageError: the record has no body here, or is a control record.
        """
        envelope = record.envelope
        if envelope is None or envelope.epoch is None:
            raise UsageError("only the body of a data record can be opened")
        state = self._groups.get(record.group)
        secret = None if state is None else state.epochs.get(envelope.epoch)
        if secret is None:
            return None
        context = aead_context(record.group, record.author, record.incarnation, record.seq)
        return open_body(envelope, secret, context)


def _with_owner(record: Record, owner: bytes) -> Record:
    if owner == record.owner:
        return record
    return Record(
        record.id,
        record.head,
        record.header,
        record.signature,
        record.envelope,
        owner,
        record.plain,
        record.state,
        record.relation,
    )
