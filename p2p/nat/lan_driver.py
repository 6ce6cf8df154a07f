"""LAN discovery over real sockets: multicast on each interface, for as long as it is there.

One task an interface and family reads, one an interface sends; what they mean is
`p2p.nat.lan.LanLink`'s. Sockets never block: a datagram that the kernel does not take now is lost,
as on any network. Each interface has sockets of its own, bound to its index, so that a datagram is
judged by the networks of the interface it came by. Source: docs/specs/lan.md s.4.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2p.nat.lan import MDNS_PORT, LanLink, Neighbours, addrs_on_link, service_of
from p2p.nat.mdns import MESSAGE_BYTES_MAX
from p2p.net.interfaces import list_interfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.env import Env
    from p2p.identity import PeerId
    from p2p.nat.lan_config import LanConfig
    from p2p.net.interfaces import Interface
    from p2p.net.seam import Addr

log = logging.getLogger("covey.p2p.lan")

GROUP4: Final = "224.0.0.251"
GROUP6: Final = "ff02::fb"
HOPS: Final = 255
"""Source: RFC 6762 s.11."""
INTERFACES_MAX: Final = 8
"""Interfaces taken part on: a host of containers has a bridge for each network of theirs."""
RETRY_S: Final = 60.0
"""An interface whose sockets failed is tried again after this."""
# Linux hands a socket the groups that any socket joined, unless told otherwise; Python does not
# name the options. Source: ip(7), ipv6(7).
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29


@dataclass(frozen=True, kw_only=True)
class LanReport:
    """What LAN discovery does right now."""

    interfaces: tuple[str, ...]
    """Names of the interfaces on which we ask and answer."""
    problems: tuple[str, ...]
    """What failed on others, a sentence each."""
    neighbours: tuple[tuple[PeerId, tuple[Addr, ...], float], ...]
    """Peer, its addresses, and how many seconds ago it was heard; the latest first."""


@dataclass
class _Running:
    """A link that has a task."""

    interface: Interface
    addrs: tuple[Addr, ...]
    scope: trio.CancelScope
    problem: str = ""
    ended: bool = False


class LanDriver:
    """Finds peers on the links of this machine.

    Args:
        us: our peer id.
        config: what to do at all.
        env: clock and random numbers.
        network: nodes of other networks are not met.
        listening: addresses we are bound to, asked anew at each change.
        found: told each peer with its addresses; a hint, proved by nobody.
        wanted: whether we look for a peer.
        interfaces: asks the system.
    """

    def __init__(
        self,
        us: PeerId,
        config: LanConfig,
        env: Env,
        *,
        network: str,
        listening: Callable[[], Sequence[Addr]],
        found: Callable[[PeerId, Sequence[Addr]], None],
        wanted: Callable[[PeerId], bool] = lambda _: False,
        interfaces: Callable[[], Sequence[Interface]] = list_interfaces,
    ) -> None:
        self._config = config
        self._env = env
        self._service = service_of(network)
        self._listening = listening
        self._found = found
        self._interfaces = interfaces
        self._neighbours = Neighbours(us, wanted)
        self._links: dict[int, _Running] = {}
        self._changed = trio.Event()
        self._paused = False

    def refresh(self) -> None:
        """Look at the interfaces anew: something changed. Never blocks."""
        self._changed.set()

    def pause(self) -> None:
        """Say and ask nothing until `resume`."""
        self._paused = True
        self.refresh()

    def resume(self) -> None:
        """End `pause`."""
        self._paused = False
        self.refresh()

    def report(self) -> LanReport:
        """What we do right now."""
        now = self._env.now()
        live = [link for link in self._links.values() if not link.problem]
        return LanReport(
            interfaces=tuple(link.interface.name for link in live),
            problems=tuple(link.problem for link in self._links.values() if link.problem),
            neighbours=tuple(
                (one.peer, tuple(one.addrs), now - one.heard_s) for one in self._neighbours.now(now)
            ),
        )

    def counters(self) -> dict[str, int]:
        """Since the start: peers passed on (`lan_found`), and what was dropped, by reason."""
        return dict(self._neighbours.counters)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Without anything to do it ends at once."""
        task_status.started()
        if not self._config.discovery and not self._config.announce:
            return
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    self._changed = trio.Event()
                    self._reconcile(nursery)
                    with trio.move_on_after(RETRY_S):
                        await self._changed.wait()
        finally:
            self._links.clear()

    def _reconcile(self, nursery: trio.Nursery) -> None:
        """Start and stop links, so that they are those of the interfaces there are."""
        wanted = {} if self._paused else self._wanted_links()
        for index, link in list(self._links.items()):
            moved = wanted.get(index) != (link.interface, link.addrs)
            if moved or link.ended:
                link.scope.cancel()
                del self._links[index]
            if moved:
                self._neighbours.forget()
        for index, (interface, addrs) in wanted.items():
            if index not in self._links:
                link = _Running(interface, addrs, trio.CancelScope())
                self._links[index] = link
                nursery.start_soon(self._run_link, link)

    def _wanted_links(self) -> dict[int, tuple[Interface, tuple[Addr, ...]]]:
        listening = self._listening()
        wanted: dict[int, tuple[Interface, tuple[Addr, ...]]] = {}
        for interface in self._interfaces():
            # A tunnel's other end is not on our link; loopback joins two daemons of one machine.
            usable = interface.multicast or interface.loopback
            if not usable or interface.point_to_point or not interface.addresses:
                continue
            addrs = tuple(addrs_on_link(listening, interface.addresses))
            if (addrs or self._config.discovery) and len(wanted) < INTERFACES_MAX:
                wanted[interface.index] = interface, addrs
        return wanted

    async def _run_link(self, link: _Running) -> None:
        sockets: list[tuple[socket.socket, tuple[str, int]]] = []
        try:
            with link.scope:
                sockets = _open(link.interface)
                await self._serve(link, sockets)
        except OSError as error:
            link.problem = (
                f"{link.interface.name}: {error.strerror or error}; it is tried again within"
                f" {RETRY_S:.0f} s"
            )
            log.info("lan_failed", extra={"f": {"why": link.problem}})
        finally:
            link.ended = True
            for sock, _ in sockets:
                trio.lowlevel.notify_closing(sock)
                sock.close()

    async def _serve(
        self, link: _Running, sockets: Sequence[tuple[socket.socket, tuple[str, int]]]
    ) -> None:
        machine = LanLink(
            self._service,
            link.interface.addresses,
            link.addrs,
            self._neighbours,
            self._env.rng,
            self._env.now(),
            discovery=self._config.discovery,
            announce=self._config.announce,
        )
        wakeup = _Wakeup()
        try:
            async with trio.open_nursery() as nursery:
                for sock, _ in sockets:
                    nursery.start_soon(self._read, sock, machine, wakeup)
                while True:
                    machine.on_timer(self._env.now())
                    for data in machine.to_send():
                        _send(sockets, data)
                    await wakeup.wait_until(machine.next_timer(), self._env.now())
        finally:
            goodbye = machine.goodbye()
            if goodbye is not None:
                _send(sockets, goodbye)

    async def _read(self, sock: socket.socket, machine: LanLink, wakeup: _Wakeup) -> None:
        while True:
            # One datagram a turn: the largest takes 2 ms, and others wait meanwhile.
            await trio.lowlevel.wait_readable(sock)
            try:
                data, remote = sock.recvfrom(MESSAGE_BYTES_MAX + 1)
            except (BlockingIOError, InterruptedError):
                continue
            source = ipaddress.ip_address(str(remote[0]).partition("%")[0])
            for one in machine.receive(data, source, int(remote[1]), self._env.now()):
                self._found(one.peer, one.addrs)
            wakeup.set()


class _Wakeup:
    """Waits for a time or a nudge."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """End the wait under way, or the next one."""
        self._event.set()

    async def wait_until(self, at_s: float | None, now: float) -> None:
        """Until `at_s` (None: for ever) or `set`."""
        with trio.move_on_after(float("inf") if at_s is None else max(0.0, at_s - now)):
            await self._event.wait()
        self._event = trio.Event()


def _send(sockets: Sequence[tuple[socket.socket, tuple[str, int]]], data: bytes) -> None:
    for sock, group in sockets:
        try:
            sock.sendto(data, group)
        except OSError as error:
            # A full queue or a link that just went: as good as lost on the way.
            log.debug("lan_not_sent", extra={"f": {"why": error.strerror}})


def _open(interface: Interface) -> list[tuple[socket.socket, tuple[str, int]]]:
    """Sockets of an interface with the group each sends to.

    Raises:
        OSError: none could be made.
    """
    found: list[tuple[socket.socket, tuple[str, int]]] = []
    problem: OSError | None = None
    own4 = [address.ip for address in interface.addresses if address.version == 4]
    has6 = any(address.version == 6 for address in interface.addresses)
    if own4:
        try:
            found.append((_open4(interface.index, own4[0].packed), (GROUP4, MDNS_PORT)))
        except OSError as error:
            problem = error
    if has6 and not interface.loopback:  # there is no multicast route over IPv6's loopback
        try:
            found.append((_open6(interface.index), (GROUP6, MDNS_PORT)))
        except OSError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found


def _open4(index: int, own: bytes) -> socket.socket:
    sock = _bound(socket.AF_INET, "")
    try:
        group = socket.inet_aton(GROUP4)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        # ip_mreqn: the index says which interface, the address from which we send.
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4si", group, own, index)
        )
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), own, index)
        )
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _open6(index: int) -> socket.socket:
    sock = _bound(socket.AF_INET6, "::")
    try:
        membership = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("@I", index)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _bound(family: socket.AddressFamily, host: str) -> socket.socket:
    """A socket at the port that all who speak mDNS here share."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, MDNS_PORT))
    except BaseException:
        sock.close()
        raise
    return sock
