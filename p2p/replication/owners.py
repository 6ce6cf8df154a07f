"""Which person a device belongs to: the owner key of a home, vouchers, and what each device says.

A home has an owner key, made with it and sealed to its admins (kind 21). An admin vouches with it
for the home's devices; each device publishes the voucher in the groups it is in (kind 20). Votes,
trust classes and quotas then count owners, never devices. Source: docs/specs/record.md s.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.identity import Identity
from p2p.replication.epoch import open_owner_seed, seal_owner_seed
from p2p.replication.groups import SECRET_OWNER, STATE_MEMBER, Group, Groups
from p2p.replication.keys import SealError
from p2p.replication.ops import DOMAIN_OWNER, Kind, Owner, OwnerKey, Role

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from p2p.env import Env
    from p2p.identity import Signer
    from p2p.replication.ops import Payload
    from p2p.replication.store import LocalRow, RecordStore

HOME_NAME = "home"
"""Local name of the home in force, when this device knows several."""


class Owners:
    """Owner keys and vouchers of this device's groups.

    Args:
        signer: this device.
        store: local rows.
        env: random numbers.
        groups: all groups.
    """

    def __init__(self, signer: Signer, store: RecordStore, env: Env, groups: Groups) -> None:
        self._me = signer.id
        self._store = store
        self._env = env
        self._groups = groups
        self._told: dict[tuple[bytes, bytes], tuple[bytes, str]] = {}

    def changes(self, group: Group) -> list[tuple[bytes, bytes, str]]:
        """(device, owner, relation) of members for which they differ from what was last told."""
        if not group.founded:
            return []
        own = self._groups.own_devices()
        found = []
        for member in group.standing.members():
            now = (group.standing.owner(member), self._groups.relation(group, member, own))
            if self._told.get((group.id, member)) != now:
                self._told[group.id, member] = now
                found.append((member, *now))
        return found

    def home(self) -> Group | None:
        """The home in force."""
        homes = [g for g in self._groups.all() if g.home and g.state == STATE_MEMBER and g.founded]
        named = [g for g in homes if g.name == HOME_NAME]
        return next(iter(named or homes), None)

    async def duties(self, group: Group) -> tuple[list[tuple[Kind, Payload]], list[LocalRow]]:
        """Owner records we should write in a group now."""
        payloads: list[tuple[Kind, Payload]] = []
        local: list[LocalRow] = []
        if group.home and group.role(self._me) == Role.ADMIN:
            if not group.standing.owner_keys() and group.standing.founder == self._me:
                seed: bytes | None = await self._new_seed(group, local)
            else:
                seed = await self._seed(group, local)
            handed = None if seed is None else self._hand_on(group, seed)
            if handed is not None:
                payloads.append((Kind.OWNER_KEY, handed))
        published = self._publish(group, payloads)
        if published is not None:
            payloads.append((Kind.OWNER, published))
        return payloads, local

    async def _new_seed(self, group: Group, local: list[LocalRow]) -> bytes:
        """The owner key of a home we founded, drawn once."""
        for _, columns in await self._store.local("secret", group.id):
            if columns[1] == SECRET_OWNER and isinstance(columns[3], bytes):
                return columns[3]
        seed = self._env.rng.randbytes(32)
        owner = Identity.from_seed(seed).id
        local.append(("secret", (group.id, SECRET_OWNER, owner, seed)))
        return seed

    async def _seed(self, group: Group, local: list[LocalRow]) -> bytes | None:
        """The home's owner seed, as far as it was sealed to us."""
        records = group.standing.owner_keys()
        if not records:
            return None
        wanted = records[0].payload.owner_key
        for _, columns in await self._store.local("secret", group.id):
            if columns[1] == SECRET_OWNER and columns[2] == wanted:
                seed = columns[3]
                return seed if isinstance(seed, bytes) else None
        for record in records:
            if record.payload.owner_key != wanted:
                continue
            for admin, sealed in record.payload.seeds:
                seed = self._open(group, sealed) if admin == self._me else None
                if seed is not None and Identity.from_seed(seed).id == wanted:
                    local.append(("secret", (group.id, SECRET_OWNER, wanted, seed)))
                    return seed
        return None

    def _open(self, group: Group, sealed: bytes) -> bytes | None:
        for private in group.exchange.values():
            try:
                return open_owner_seed(group.id, private, sealed)
            except SealError:
                continue
        return None

    def _hand_on(self, group: Group, seed: bytes) -> OwnerKey | None:
        """Vouchers and seeds that devices and admins of the home still lack."""
        owner = Identity.from_seed(seed)
        vouched: set[bytes] = set()
        sealed: set[bytes] = set()
        for record in group.standing.owner_keys():
            if record.payload.owner_key == owner.id:
                vouched.update(device for device, _ in record.payload.vouchers)
                sealed.update(admin for admin, _ in record.payload.seeds)
        members = group.standing.members()
        devices = [m for m, role in members.items() if role >= Role.WRITE and m not in vouched]
        admins = {
            m: key
            for m, role in members.items()
            if role == Role.ADMIN
            and m not in sealed
            and (key := group.standing.exchange_key(m)) is not None
        }
        if not devices and not admins:
            return None
        return make_owner_key(group.id, owner, seed, devices, admins, self._env.rng)

    def _publish(self, group: Group, pending: list[tuple[Kind, Payload]]) -> Owner | None:
        """Our own owner record for this group, if the home's voucher is newer than what it says."""
        home = self.home()
        if home is None or (group is not home and len(group.standing.members()) == 1):
            return None  # Nobody would read it.
        offered = [record.payload for record in home.standing.owner_keys()]
        if home is group:
            offered = [p for _, p in pending if isinstance(p, OwnerKey)] + offered
        if not offered:
            return None
        key = offered[0].owner_key
        if group.standing.owner(self._me) == key:
            return None
        for payload in offered:
            for device, signature in payload.vouchers:
                if device == self._me and payload.owner_key == key:
                    return Owner(key, signature)
        return None


def make_owner_key(
    home: bytes,
    owner: Identity,
    seed: bytes,
    devices: list[bytes],
    admins: Mapping[bytes, bytes],
    rng: random.Random,
) -> OwnerKey:
    """The payload that vouches for devices and hands the seed to admins.

    Args:
        home: the home group's id.
        owner: the owner key.
        seed: its seed.
        devices: to vouch for.
        admins: admin -> X25519 key to seal the seed to.
        rng: source of the ephemeral keys.
    """
    seeds = sorted((a, seal_owner_seed(home, seed, key, rng)) for a, key in admins.items())
    vouchers = sorted((device, owner.sign(DOMAIN_OWNER, device)) for device in devices)
    return OwnerKey(owner.id, tuple(seeds), tuple(vouchers))
