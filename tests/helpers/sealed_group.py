"""A real group in memory: devices with keys, sealed records, no store and no network."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from p2p.identity import Identity, verify
from p2p.replication import ops
from p2p.replication.authority import Authority
from p2p.replication.epoch import epoch_id, make_epoch, new_secret, tag_commit
from p2p.replication.keys import exchange_public, generate_exchange
from p2p.replication.owners import make_owner_key
from p2p.replication.record import Envelope, RecordWire, encode_header, verify_record
from p2p.replication.sealing import ControlDraft, GroupSealer, Place, sign_record

if TYPE_CHECKING:
    from p2p.replication.record import Record

START_MS = 1_700_000_000_000


class StillEnv:
    """Seeded numbers, and a wall clock the test moves."""

    def __init__(self, seed: object = 0) -> None:
        self.rng = random.Random(f"sealed group {seed}")
        self.wall = START_MS

    def wall_ms(self) -> int:
        """The time the test set."""
        return self.wall


class Member:
    """One device: key, sealer and the ends of its logs."""

    def __init__(self, env: StillEnv, authority: Authority, incarnation: int = 1) -> None:
        self.env = env
        self.identity = Identity.generate(env.rng)
        self.exchange = generate_exchange(env.rng)
        self.use(authority, incarnation)

    def use(self, authority: Authority, incarnation: int) -> None:
        """Write in a group, from the beginning of a log."""
        self.authority = authority
        self.group = authority.group
        self.sealer = GroupSealer(self.identity, self.env)
        self.sealer.load_group(authority.group, authority, incarnation=incarnation)
        self.ends: dict[int, tuple[int, bytes | None, int]] = {0: (0, None, 0), 1: (0, None, 0)}

    @property
    def id(self) -> bytes:
        """Device key."""
        return self.identity.id

    @property
    def exchange_public(self) -> bytes:
        """X25519 public key."""
        return exchange_public(self.exchange)

    def place(self, lane: int) -> Place:
        """Where the next record of a lane goes."""
        seq, prev, hlc = self.ends[lane]
        return Place(self.sealer.log(self.group, lane), seq + 1, prev, hlc)

    def advance(self, record: Record) -> Record:
        """Note that a record was stored."""
        self.ends[record.lane] = (record.seq, record.id, record.hlc)
        return record

    def control(self, kind: ops.Kind, payload: ops.Payload) -> Record:
        """Seal a control record, store it and tell the authority."""
        draft = ControlDraft(kind, ops.encode_payload(payload))
        record = self.advance(self.sealer.seal(draft, self.place(0)))
        self.authority.add(record.id, record.head, payload)
        return record

    def data(self, body: bytes = b"body", kind: int = 32) -> Record:
        """Seal a data record and store it."""
        self.sealer.advance(self.place(1).log[0])
        return self.advance(self.sealer.seal(ControlDraft(kind, body), self.place(1)))


class SealedGroup:
    """A founder and whoever it lets in.

    Args:
        home: whether it is one person's devices; then the owner records are written too.
        seed: of all keys.
    """

    def __init__(self, *, home: bool = False, seed: object = 0) -> None:
        self.env = StillEnv(seed)
        founder = Identity.generate(self.env.rng)
        exchange = generate_exchange(self.env.rng)
        self.secret = new_secret(self.env.rng)
        self.recovery = Identity.generate(self.env.rng)
        genesis = ops.Genesis(
            exchange_public(exchange),
            self.recovery.id,
            int(home),
            tag_commit(self.secret),
            None,
            self.env.rng.randbytes(16),
        )
        self.genesis = self._sign_genesis(founder, genesis)
        self.authority = Authority(self.genesis.id)
        self.authority.add(self.genesis.id, self.genesis.head, genesis)
        self.founder = Member(self.env, self.authority)
        self.founder.identity, self.founder.exchange = founder, exchange
        self.founder.use(self.authority, incarnation=1)
        self.founder.advance(self.genesis)
        readers: dict[bytes, bytes] = {founder.id: genesis.exchange_key}
        epoch = make_epoch(self.group, self.secret, readers, self.env.rng)
        self.epoch_record = self.founder.control(ops.Kind.EPOCH, epoch)
        self.epoch = epoch_id(self.epoch_record.id)
        self.founder.sealer.set_epoch(self.group, self.epoch, self.secret)
        self.owner_seed = self.env.rng.randbytes(32)
        if home:
            self.vouch([founder.id])
            self.publish_owner(self.founder)

    def _sign_genesis(self, founder: Identity, genesis: ops.Genesis) -> Record:
        draft = ControlDraft(ops.Kind.GENESIS, ops.encode_payload(genesis))
        envelope = Envelope(self.env.rng.randbytes(16), None, None, draft.body)
        place = Place((bytes(32), founder.id, 1, 0), 1, None, 0)
        return sign_record(founder, None, draft, place, START_MS << 16, (), envelope)

    @property
    def group(self) -> bytes:
        """Group id."""
        return self.genesis.id

    @property
    def owner(self) -> Identity:
        """The home's owner key."""
        return Identity.from_seed(self.owner_seed)

    def vouch(self, devices: list[bytes]) -> ops.OwnerKey:
        """The founder vouches for devices with the owner key."""
        admins = {self.founder.id: self.founder.exchange_public}
        key = make_owner_key(self.group, self.owner, self.owner_seed, devices, admins, self.env.rng)
        self.founder.control(ops.Kind.OWNER_KEY, key)
        return key

    def publish_owner(self, member: Member) -> Record:
        """A device publishes the newest voucher for it."""
        record = self.authority.standing().owner_keys()[0]
        signature = dict(record.payload.vouchers)[member.id]
        return member.control(ops.Kind.OWNER, ops.Owner(record.payload.owner_key, signature))

    def member(self, role: ops.Role = ops.Role.WRITE, *, keyed: bool = True) -> Member:
        """A device the founder granted a role."""
        member = Member(self.env, self.authority)
        self.founder.control(ops.Kind.GRANT, ops.Grant(member.id, role))
        member.sealer.observe(self.founder.sealer.hlc)
        if keyed:
            member.sealer.set_epoch(self.group, self.epoch, self.secret)
        return member


def received(record: Record, *, body: bool = True) -> Record:
    """The record as another device has it after verifying it."""
    wire = record.wire()
    return verify_record(wire if body else RecordWire(wire.header, wire.signature, None), verify)


def resigned(record: Record, identity: Identity, **fields: object) -> RecordWire:
    """A record with header fields changed and signed again by `identity`, envelope untouched."""
    head = record.head
    values = {name: getattr(head, name) for name in head.__struct_fields__} | fields
    header = encode_header(type(head)(**values))
    signature = identity.sign(b"covey/record/1\0", header)
    return replace(record, header=header, signature=signature).wire()
