"""The address book: where peers were last reached, and the port we listen at.

A cache in one file, `peers.msgpack`, replaced atomically; losing it costs a slower start. Only the
port is worth a sync to disk, because others hold addresses with it. Source: docs/specs/wire.md s.8.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

import msgspec

from p2p.errors import DecodeError
from p2p.identity import PeerId, check_public_key_untrusted
from p2p.limits import ADDRS_MAX
from p2p.wire.multiaddr import canonical_addr_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from p2p.net.seam import Addr

log = logging.getLogger("covey.p2p.book")

VERSION: Final = 1
FILE_BYTES_MAX: Final = 8 << 20
"""1,000 peers with 32 addresses of 256 bytes each, rounded up."""
PORT_MIN: Final = 10_000
PORT_MAX: Final = 32_767
"""The drawn port's range: above the services, below every system's ephemeral ports."""


class _AddrRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    addr: str
    success_ms: int  # Unix ms of the last success, 0 = never


class _PeerRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    peer: bytes
    seen_ms: int
    addrs: list[_AddrRow]
    record: bytes  # signed peer record, empty = none
    record_seq: int


class _File(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    port: int
    peers: list[_PeerRow]


class _Known:
    def __init__(self, seen_ms: int) -> None:
        self.seen_ms = seen_ms
        self.addrs: dict[Addr, int] = {}
        self.record = b""
        self.record_seq = 0


def decode_book_untrusted(data: bytes) -> _File:
    """Read the file's bytes.

    Raises:
        DecodeError: not a book of this version.
    """
    if len(data) > FILE_BYTES_MAX:
        raise DecodeError("the address book is too large")
    try:
        book = msgspec.msgpack.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("the address book is damaged") from None
    if book.version != VERSION:
        raise DecodeError(f"the address book has version {book.version}, this is {VERSION}")
    return book


class Book:
    """Addresses of peers.

    Args:
        path: the file; None keeps everything in memory.
        peers_max: peers kept; the longest unseen are forgotten first.
    """

    def __init__(self, path: Path | None = None, *, peers_max: int = 1000) -> None:
        self.port = 0
        """The port drawn at the first start; 0 = none yet."""
        self.dirty = False
        """Whether something changed since the last save."""
        self.keeps: Callable[[PeerId], bool] = lambda _: False
        """Who is never forgotten for a stranger."""
        self._path = path
        self._peers_max = peers_max
        self._known: dict[PeerId, _Known] = {}
        if path is not None:
            self._load(path)

    def learn(self, peer: PeerId, addrs: Iterable[Addr], now_ms: int) -> bool:
        """Remember addresses to try; whether any is new. Nonsense is skipped."""
        known = self._touch(peer, now_ms)
        before = len(known.addrs)
        for text in addrs:
            try:
                addr = canonical_addr_untrusted(text)
            except DecodeError:
                continue
            known.addrs.setdefault(addr, 0)
        grown = len(known.addrs) > before
        while len(known.addrs) > ADDRS_MAX:
            del known.addrs[min(known.addrs, key=known.addrs.__getitem__)]
        self.dirty = self.dirty or grown
        return grown

    def succeeded(self, peer: PeerId, addr: Addr, now_ms: int) -> None:
        """`peer` answered at `addr`."""
        self._touch(peer, now_ms).addrs[addr] = now_ms
        self.dirty = True

    def forget_addr(self, peer: PeerId, addr: Addr) -> None:
        """Somebody else answered at `addr`."""
        known = self._known.get(peer)
        if known is not None and known.addrs.pop(addr, None) is not None:
            self.dirty = True

    def addrs(self, peer: PeerId) -> list[Addr]:
        """Addresses of `peer`, the latest success first."""
        known = self._known.get(peer)
        if known is None:
            return []
        return sorted(known.addrs, key=lambda addr: -known.addrs[addr])

    def put_record(self, peer: PeerId, record: bytes, seq: int, now_ms: int) -> bool:
        """Keep a signed peer record unless it is not newer; whether it was kept."""
        known = self._touch(peer, now_ms)
        if seq <= known.record_seq:
            return False
        known.record, known.record_seq = record, seq
        self.dirty = True
        return True

    def peers(self) -> list[PeerId]:
        """Everybody in the book, the longest unseen first."""
        return list(self._known)

    def set_port(self, port: int) -> None:
        """Keep the drawn port, on disk before this returns."""
        self.port = port
        self.save(sync=True)

    def save(self, *, sync: bool = False) -> None:
        """Write the file, if there is one. A full disk is logged, not raised: it is a cache."""
        self.dirty = False
        if self._path is None:
            return
        rows = [
            _PeerRow(
                peer,
                known.seen_ms,
                [_AddrRow(addr, success_ms) for addr, success_ms in known.addrs.items()],
                known.record,
                known.record_seq,
            )
            for peer, known in self._known.items()
        ]
        data = msgspec.msgpack.encode(_File(VERSION, self.port, rows))
        temporary = self._path.with_suffix(".tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            log.warning("book_not_saved", extra={"f": {"error": error.strerror}})

    def _touch(self, peer: PeerId, now_ms: int) -> _Known:
        known = self._known.pop(peer, None) or _Known(now_ms)
        known.seen_ms = now_ms
        self._known[peer] = known  # last = seen last
        while len(self._known) > self._peers_max:
            # Strangers may come in any number; they push out each other, not those we want.
            strangers = (other for other in self._known if not self.keeps(other))
            del self._known[next(strangers, next(iter(self._known)))]
        return known

    def _load(self, path: Path) -> None:
        try:
            book = decode_book_untrusted(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, DecodeError) as error:
            log.warning("book_not_loaded", extra={"f": {"error": str(error)}})
            return
        if PORT_MIN <= book.port <= PORT_MAX:
            self.port = book.port
        for row in book.peers[-self._peers_max :]:
            try:
                known = self._touch(check_public_key_untrusted(row.peer), row.seen_ms)
                for entry in row.addrs[:ADDRS_MAX]:
                    known.addrs[canonical_addr_untrusted(entry.addr)] = entry.success_ms
            except DecodeError:
                continue
            known.record, known.record_seq = row.record, row.record_seq
        self.dirty = False
