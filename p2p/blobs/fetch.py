"""One blob from many peers at once: find who has it, ask as the schedule says, keep what is right.

Theory of operation. A `Fetch` runs in its caller's task. One task asks connected peers what they
have, again and again while the fetch lasts, and at once when a peer connects; another asks the DHT
who provides the blob if it is public. The manifest comes from whoever says yes first (the next one
is tried when it does not come), then the main loop sends what `Schedule` wants: a task a request,
which receives, and has the chunk checked and written through the store. Everything that happens
wakes the main loop. Whatever ends the fetch, its progress is made durable first.

Source: docs/specs/blobs.md s.5.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio
from trio.lowlevel import ParkingLot

from p2p.blobs.manifest import (
    MANIFEST_BYTES_MAX,
    decode_bitmap_untrusted,
    open_manifest,
    provider_key,
)
from p2p.blobs.messages import (
    GET,
    HAVE,
    MANIFEST,
    GetQuery,
    HaveQuery,
    Held,
    ManifestQuery,
    Piece,
)
from p2p.blobs.pins import Public
from p2p.blobs.schedule import LIMIT_S_MAX, Request, Schedule
from p2p.errors import (
    AuthError,
    Busy,
    DecodeError,
    LimitError,
    P2pError,
    PeerError,
    RemoteError,
    TransientError,
    Unreachable,
)
from p2p.net.seam import PeerDown, PeerUp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.blobs.config import BlobConfig
    from p2p.blobs.manifest import BlobId, Manifest
    from p2p.blobs.pins import Entry, Group
    from p2p.blobs.storage import Part
    from p2p.blobs.store import Store
    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.net.seam import Addr, Fabric
    from p2p.rpc import Rpc

log = logging.getLogger("covey.p2p.blobs")

HAVE_S_MAX: Final = 5.0
"""How long a peer may take to say what it has. Guess: it costs it no disk."""

MANIFEST_S_MIN: Final = 2.0
"""First limit for a manifest; each further round of asking doubles it."""

ASK_AT_ONCE_MAX: Final = 32
"""Peers asked at once what they have."""

DIAL_S_MAX: Final = 20.0
"""Connecting to a provider that the DHT named."""

PROVIDERS_MAX: Final = 16
"""Providers dialled for one fetch."""

SAVE_S_MAX: Final = 5.0
"""How long making progress durable may hold up an end."""


class Provider(Protocol):
    """Somebody who says that he has something."""

    @property
    def peer(self) -> PeerId:
        """Who."""
        ...

    @property
    def addrs(self) -> Sequence[Addr]:
        """Where; the handshake proves it."""
        ...


class Providers(Protocol):
    """Who has what, beyond the peers we are connected to: the part of the DHT that blobs need."""

    async def providers(self, key: bytes) -> Sequence[Provider]:
        """Who provides `key`; a hint."""
        ...

    async def provide(self, key: bytes) -> int:
        """Say that we have `key`; how many keep that in mind."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is."""

    bytes_done: int
    bytes_total: int
    sources: int
    """Peers that it loads from now."""


@dataclass(frozen=True, kw_only=True)
class Parties:
    """What every fetch uses."""

    rpc: Rpc
    fabric: Fabric
    store: Store
    env: Env
    config: BlobConfig
    reads: Callable[[Group, PeerId], bool]
    """Whether a group's blobs are for a peer: only such are asked."""
    providers: Callable[[], Providers | None]
    """The DHT; None: there is none."""


@dataclass(slots=True)
class _Candidate:
    """A peer that says it has something of the blob."""

    held: Held
    round_trip_s: float
    tries: int = 0


class Fetch:
    """One fetch; `run` is called once.

    Args:
        parties: rpc, store and so on.
        blob: which.
        group: whom to ask, and who may read it here afterwards.
        on_progress: called on the loop whenever something changed; must not block.
    """

    def __init__(
        self,
        parties: Parties,
        blob: BlobId,
        group: Group,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.failures: Counter[str] = Counter()
        self._parties = parties
        self._store = parties.store
        self._config = parties.config
        self._blob = blob
        self._group = group
        self._on_progress = on_progress
        self._candidates: dict[PeerId, _Candidate] = {}
        self._banned: set[PeerId] = set()
        self._asking: set[PeerId] = set()
        self._ask_limit = trio.CapacityLimiter(ASK_AT_ONCE_MAX)
        self._changed = False
        self._wake = ParkingLot()
        self._failure: Exception | None = None
        self._manifest: Manifest | None = None
        self._schedule: Schedule | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._unsynced_bytes = 0
        self._syncing = False

    # --- The whole ----------------------------------------------------------------------------

    async def run(self) -> Entry:
        """Fetch it.

        Raises:
            Unreachable: nothing came for `stall_s`; progress is kept.
            DiskFull: no room; progress is kept.
            LimitError: it is larger than we take.
        """
        entry: Entry | None = None
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(self._watch_peers, nursery)
                if isinstance(self._group, Public):
                    nursery.start_soon(self._ask_dht, nursery)
                manifest = await self._get_manifest()
                self._manifest = manifest
                await self._store.collect(coming_bytes=manifest.size, keep=self._blob)
                entry, part = await self._store.begin(self._blob, manifest, self._group)
                try:
                    await self._load(entry, part, manifest)
                    await self._store.finish(entry, part)
                finally:
                    with trio.move_on_after(SAVE_S_MAX, shield=True):
                        await self._save(entry, part)
                    entry.fetching = False
                    part.close()
            except P2pError as error:
                # Kept out of the nursery, which would wrap it.
                self._failure = error
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        assert entry is not None
        return entry

    async def _save(self, entry: Entry, part: Part) -> None:
        if not entry.whole:
            try:
                await self._store.sync(entry, part)
            except TransientError:
                # A full disk: what was durable before still is.
                log.info("blob_progress_unsaved")

    async def _load(self, entry: Entry, part: Part, manifest: Manifest) -> None:
        """Have every chunk here; when this ends, nobody writes to `part` any more."""
        now = self._parties.env.now
        schedule = Schedule(manifest, entry.right, self._config, now())
        self._schedule = schedule
        self._tell()
        async with trio.open_nursery() as requests:
            while not schedule.done and self._failure is None:
                schedule.on_timer(now())
                if schedule.stalled(now()):
                    self._failure = self._unreachable("nothing of it came")
                    break
                self._refill(schedule, manifest)
                self._send(requests, schedule, entry, part, manifest)
                await self._pause(schedule.next_timer())
            requests.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    def _send(
        self,
        nursery: trio.Nursery,
        schedule: Schedule,
        entry: Entry,
        part: Part,
        manifest: Manifest,
    ) -> None:
        """Start and end requests as the schedule wants, and make progress durable now and then."""
        requests = schedule.to_send(self._parties.env.now())
        for request in schedule.to_cancel():
            scope = self._scopes.pop(request.number, None)
            if scope is not None:
                scope.cancel()
        for request in requests:
            # Made here, so that one cancelled before it started does not start.
            scope = self._scopes[request.number] = trio.CancelScope()
            nursery.start_soon(self._request, request, scope, entry, part, manifest)
        if self._unsynced_bytes >= self._config.sync_bytes and not self._syncing:
            self._syncing = True
            self._unsynced_bytes = 0
            nursery.start_soon(self._sync, entry, part)

    async def _pause(self, until: float | None) -> None:
        """Return when something happened, or at `until`."""
        if not self._changed:
            left_s = math.inf if until is None else until - self._parties.env.now()
            with trio.move_on_after(max(left_s, 0.0)):
                await self._wake.park()
        self._changed = False

    def _happened(self) -> None:
        self._changed = True
        self._wake.unpark_all()

    def _tell(self) -> None:
        assert self._manifest is not None
        assert self._schedule is not None
        self._on_progress(
            Progress(
                self._manifest.bytes_of(self._schedule.have),
                self._manifest.size,
                len(self._schedule.sources),
            )
        )

    def _unreachable(self, what: str) -> Unreachable:
        reasons = ", ".join(f"{why} {n}x" for why, n in sorted(self.failures.items()))
        return Unreachable(
            f"{what} for {self._config.stall_s:.0f} s: no reachable peer has this blob, or may give"
            f" it to us{f' ({reasons})' if reasons else ''}; what came so far is kept"
        )

    async def _sync(self, entry: Entry, part: Part) -> None:
        try:
            await self._store.sync(entry, part)
        except TransientError as error:
            self._failure = error
        finally:
            self._syncing = False
            self._happened()

    # --- Who has it ---------------------------------------------------------------------------

    async def _watch_peers(self, nursery: trio.Nursery) -> None:
        """Ask everybody who is connected, whoever connects, and now and then again."""
        events = self._parties.fabric.events()
        self._ask_all(nursery)
        while True:
            with trio.move_on_after(self._config.ask_again_s) as waited:
                try:
                    event = await events.receive()
                except trio.EndOfChannel:  # we were too slow: look at all of them
                    events = self._parties.fabric.events()
                    event = None
                if isinstance(event, PeerUp):
                    self._ask(nursery, event.peer)
                elif isinstance(event, PeerDown):
                    self._gone(event.peer)
            if waited.cancelled_caught or event is None:
                self._ask_all(nursery)

    def _ask_all(self, nursery: trio.Nursery) -> None:
        for peer in self._parties.fabric.peers():
            self._ask(nursery, peer)

    def _ask(self, nursery: trio.Nursery, peer: PeerId) -> None:
        """Ask a peer what it has, unless we know that it has all, or it may not be asked."""
        known = self._candidates.get(peer)
        if (
            peer in self._asking
            or self._is_banned(peer)
            or (known is not None and not known.held.bitmap)
            or not self._parties.reads(self._group, peer)
        ):
            return
        self._asking.add(peer)
        nursery.start_soon(self._ask_one, peer)

    async def _ask_one(self, peer: PeerId) -> None:
        try:
            async with self._ask_limit:
                before = self._parties.env.now()
                reply = await self._parties.rpc.call(
                    peer, HAVE, HaveQuery([self._blob]), timeout_s=HAVE_S_MAX
                )
                took_s = self._parties.env.now() - before
            if len(reply.held) != 1:
                raise DecodeError("an answer for each id asked", peer)
            self._heard(peer, reply.held[0], took_s)
        except P2pError as error:
            # Its refusal, its fault or its absence: in each case it is no source now.
            self.failures[type(error).__name__] += 1
            if isinstance(error, PeerError) and not isinstance(error, AuthError):
                self._ban(peer)
        finally:
            self._asking.discard(peer)

    def _heard(self, peer: PeerId, held: Held | None, took_s: float) -> None:
        if held is None:
            self._candidates.pop(peer, None)
            return
        info = self._parties.fabric.peers().get(peer)
        trip_s = took_s if info is None or info.rtt_s is None else info.rtt_s
        self._candidates[peer] = _Candidate(held, trip_s)
        if self._schedule is not None and self._manifest is not None:
            has = self._has(peer, held, self._manifest)
            if has is not None:
                self._schedule.source_has(peer, has)
        self._happened()

    def _gone(self, peer: PeerId) -> None:
        self._candidates.pop(peer, None)
        if self._schedule is not None:
            self._schedule.source_down(peer)
        self._happened()

    def _ban(self, peer: PeerId) -> None:
        """It lied: nothing more of it for this fetch."""
        if peer not in self._banned:
            log.warning("blob_source_banned", extra={"f": {"peer": bytes(peer).hex()[:16]}})
        self._banned.add(peer)
        self._candidates.pop(peer, None)

    def _is_banned(self, peer: PeerId) -> bool:
        return peer in self._banned

    def _has(self, peer: PeerId, held: Held, manifest: Manifest) -> int | None:
        """The bitmap of what a peer says it has; None, and it is banned, if that makes no sense."""
        if held.size != manifest.size:
            self._ban(peer)
            return None
        try:
            if not held.bitmap:
                return manifest.whole
            return decode_bitmap_untrusted(held.bitmap, manifest.chunks)
        except DecodeError:
            self._ban(peer)
            return None

    def _refill(self, schedule: Schedule, manifest: Manifest) -> None:
        """Make sources of candidates, as long as there is room."""
        for peer, candidate in list(self._candidates.items()):
            if not schedule.has_room(peer):
                continue
            has = self._has(peer, candidate.held, manifest)
            if has is None:
                continue
            info = self._parties.fabric.peers().get(peer)
            schedule.source_up(
                peer,
                has=has,
                start=self._parties.env.rng.randrange(manifest.chunks),
                round_trip_s=candidate.round_trip_s,
                relay=info is not None and info.path == "relay",
            )

    async def _ask_dht(self, nursery: trio.Nursery) -> None:
        """Providers of a public blob, dialled and asked like everybody else."""
        providers = self._parties.providers()
        if providers is None:
            return
        try:
            found = await providers.providers(provider_key(self._blob))
        except P2pError as error:
            self.failures[f"DHT {type(error).__name__}"] += 1
            return
        for provider in list(found)[:PROVIDERS_MAX]:
            if provider.peer != self._parties.fabric.id:
                nursery.start_soon(self._dial, nursery, provider)

    async def _dial(self, nursery: trio.Nursery, provider: Provider) -> None:
        try:
            with trio.move_on_after(DIAL_S_MAX):
                await self._parties.fabric.connect(provider.peer, list(provider.addrs))
                self._ask(nursery, provider.peer)
        except P2pError as error:
            self.failures[type(error).__name__] += 1

    # --- The manifest -------------------------------------------------------------------------

    async def _get_manifest(self) -> Manifest:
        """From disk, or from the first candidate that has the right one."""
        entry = self._store.entries.get(self._blob)
        known = None if entry is None else await self._store.manifest(entry)
        if known is not None:
            return known
        deadline = self._parties.env.now() + self._config.stall_s
        while self._parties.env.now() < deadline:
            peer = min(self._candidates, key=lambda one: self._candidates[one].tries, default=None)
            if peer is None:
                await self._pause(deadline)
                continue
            candidate = self._candidates[peer]
            limit_s = MANIFEST_S_MIN * 2 ** min(candidate.tries, 4)
            candidate.tries += 1
            with trio.move_on_at(
                trio.current_time() + min(limit_s, max(deadline - self._parties.env.now(), 0.0))
            ):
                manifest = await self._manifest_of(peer)
                if manifest is not None:
                    return self._admit(manifest)
        raise self._unreachable("its manifest did not come")

    def _admit(self, manifest: Manifest) -> Manifest:
        if manifest.size > self._config.fetch_bytes_max:
            raise LimitError(
                f"the blob has {manifest.size} bytes, at most {self._config.fetch_bytes_max} are"
                " fetched"
            )
        return manifest

    async def _manifest_of(self, peer: PeerId) -> Manifest | None:
        """The manifest as `peer` has it; None when it does not come, or is another's."""
        data = bytearray()
        try:
            query = ManifestQuery(self._blob)
            async with self._parties.rpc.stream(peer, MANIFEST, query) as call:
                async for item in call:
                    assert isinstance(item, bytes)
                    data += item
                    if len(data) > MANIFEST_BYTES_MAX:
                        raise DecodeError("the manifest does not end", peer)
                await call.result()
            return open_manifest(self._blob, bytes(data))
        except AuthError:
            self._candidates.pop(peer, None)
        except PeerError:
            self._ban(peer)
        except RemoteError:
            self._candidates.pop(peer, None)
        except TransientError as error:
            self.failures[type(error).__name__] += 1
            if isinstance(error, Unreachable):
                self._candidates.pop(peer, None)
        return None

    # --- Chunks -------------------------------------------------------------------------------

    async def _request(
        self,
        request: Request,
        scope: trio.CancelScope,
        entry: Entry,
        part: Part,
        manifest: Manifest,
    ) -> None:
        """One chunk from one source."""
        schedule = self._schedule
        assert schedule is not None
        now = self._parties.env.now
        data: bytes | bytearray | None = None
        try:
            with scope:
                data = await self._receive(request, manifest)
            if data is not None and schedule.arrived(request, now()):
                if await self._store.accept(entry, part, manifest, request.index, data):
                    schedule.stored(request.index, now())
                    self._unsynced_bytes += len(data)
                    self._tell()
                else:
                    raise DecodeError("the bytes are not the chunk", request.peer)
        except Busy as error:
            schedule.busy(request, max(error.retry_after_ms / 1000, 0.1), now())
        except RemoteError:
            schedule.refused(request)
        except AuthError:
            self._gone(request.peer)
        except PeerError:
            self._ban(request.peer)
            schedule.wrong(request)
        except TransientError as error:
            self._failed(request, error)
        finally:
            self._scopes.pop(request.number, None)
            self._happened()

    def _failed(self, request: Request, error: TransientError) -> None:
        """The source went away, or our own disk failed."""
        if isinstance(error, Unreachable | Busy):
            self.failures[type(error).__name__] += 1
            self._gone(request.peer)
        else:
            self._failure = error

    async def _receive(self, request: Request, manifest: Manifest) -> bytes | bytearray:
        """All bytes of a chunk, unchecked.

        Raises:
            DecodeError: pieces out of place.
        """
        size = manifest.span(request.index).size
        query = GetQuery(self._blob, [request.index])
        data: bytes | bytearray = b""
        async with self._parties.rpc.stream(
            request.peer, GET, query, timeout_s=LIMIT_S_MAX
        ) as call:
            async for piece in call:
                assert isinstance(piece, Piece)
                end = len(data) + len(piece.data)
                if piece.index != request.index or piece.offset != len(data) or end > size:
                    raise DecodeError("a piece out of its place", request.peer)
                if not data:
                    # The usual chunk is one piece: no copy.
                    data = piece.data if end == size else bytearray(piece.data)
                else:
                    assert isinstance(data, bytearray)
                    data += piece.data
            await call.result()
        if len(data) != size:
            raise DecodeError("the chunk is not complete", request.peer)
        return data
