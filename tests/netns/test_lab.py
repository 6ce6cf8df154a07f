"""The laboratory itself: each router maps and filters as its kind says, seen by plain sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import pytest

from tests.helpers.netns import KINDS, Home, Kind, Lab, Public, Space, need_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.need_root

PORT: Final = 4001
PATIENCE_S: Final = 5.0
"""What comes comes at once; this only ends a hang."""
REFUSED_S: Final = 0.8
"""Long enough for what is let in, short of the kernel's second SYN."""


@pytest.fixture
def lab(no_leaks: None) -> Iterator[Lab]:
    del no_leaks  # first in, last out: it counts what the laboratory leaves behind
    need_lab()
    with Lab() as built:
        yield built


@contextlib.contextmanager
def bound(
    space: Space, port: int, kind: socket.SocketKind, family: socket.AddressFamily
) -> Iterator[socket.socket]:
    """A socket at a port of a namespace, with the options of a node's."""
    with space.entered():
        sock = socket.socket(family, kind)
    with sock:
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
        yield sock


def udp(space: Space, port: int) -> contextlib.AbstractContextManager[socket.socket]:
    return bound(space, port, socket.SOCK_DGRAM, socket.AF_INET)


def check_dial(space: Space, target: tuple[str, int], *, works: bool, port: int = 0) -> None:
    """A TCP connection can be made, or not."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with bound(space, port, socket.SOCK_STREAM, family) as sock:
        if works:
            sock.connect(target)
        else:
            sock.settimeout(REFUSED_S)
            with pytest.raises(TimeoutError):
                sock.connect(target)


def caller(listener: socket.socket) -> str:
    """Who connected."""
    sock, address = listener.accept()
    sock.close()
    return str(address[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_maps_as_its_kind_says(lab: Lab, kind: Kind) -> None:
    one, two, home = lab.public(1), lab.public(2), lab.home(3, kind)
    seen = []
    with udp(home.host, PORT) as inside:
        for public, port in ((one, 5000), (one, 5001), (two, 5000)):
            with udp(public.host, port) as outside:
                inside.sendto(b"who am I?", (public.v4, port))
                seen.append(outside.recvfrom(100)[1])
    assert {ip for ip, _ in seen} == {home.v4}
    if kind == "symmetric":
        assert len({port for _, port in seen}) == 3
    else:
        assert {port for _, port in seen} == {PORT}


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_filters_as_its_kind_says(lab: Lab, kind: Kind) -> None:
    one, two, home = lab.public(1), lab.public(2), lab.home(3, kind)
    with (
        udp(home.host, PORT) as inside,
        udp(one.host, 5000) as asked,
        udp(one.host, 5001) as beside,
        udp(two.host, 5000) as stranger,
    ):
        inside.sendto(b"hello", (one.v4, 5000))
        mapped = asked.recvfrom(100)[1]
        # The one that surely comes is the last: what is not there by then was dropped.
        stranger.sendto(b"stranger", mapped)
        beside.sendto(b"beside", mapped)
        asked.sendto(b"answer", mapped)
        got = []
        while got[-1:] != [b"answer"]:
            got.append(inside.recv(100))
    assert (b"stranger" in got) == (kind == "full-cone")
    assert (b"beside" in got) == (kind in {"full-cone", "restricted"})


@pytest.mark.parametrize("kind", KINDS)
def test_tcp_from_outside_comes_in_as_the_kind_says(lab: Lab, kind: Kind) -> None:
    one, two, home = lab.public(1), lab.public(2), lab.home(3, kind)
    with bound(home.host, PORT, socket.SOCK_STREAM, socket.AF_INET) as listener:
        listener.listen()
        with bound(one.host, 5000, socket.SOCK_STREAM, socket.AF_INET) as server:
            server.listen()
            check_dial(home.host, (one.v4, 5000), works=True, port=PORT)
            assert caller(server) == home.v4
        check_dial(two.host, (home.v4, PORT), works=kind == "full-cone")
        known = kind in {"full-cone", "restricted"}
        check_dial(one.host, (home.v4, PORT), works=known)


def test_a_firewall_lets_answers_in_and_nobody_else(lab: Lab) -> None:
    one, home = lab.public(1), lab.home(2, "port-restricted")
    with bound(one.host, PORT, socket.SOCK_STREAM, socket.AF_INET6) as listener:
        listener.listen()
        check_dial(home.host, (one.v6, PORT), works=True)
        assert caller(listener) == home.v6
    with bound(home.host, PORT, socket.SOCK_STREAM, socket.AF_INET6) as listener:
        listener.listen()
        check_dial(one.host, (home.v6, PORT), works=False)


def test_public_hosts_reach_each_other_by_both_families(lab: Lab) -> None:
    one, two = lab.public(1), lab.public(2)
    for family, ip in ((socket.AF_INET, two.v4), (socket.AF_INET6, two.v6)):
        with bound(two.host, PORT, socket.SOCK_STREAM, family) as listener:
            listener.listen()
            check_dial(one.host, (ip, PORT), works=True)


def test_an_unplugged_home_is_alone_until_it_is_plugged_in_again(lab: Lab) -> None:
    one, home = lab.public(1), lab.home(2, "port-restricted")
    with bound(one.host, PORT, socket.SOCK_STREAM, socket.AF_INET) as listener:
        listener.listen()
        lab.cut(2)
        check_dial(home.host, (one.v4, PORT), works=False)
        lab.mend(2)
        check_dial(home.host, (one.v4, PORT), works=True)


def test_two_syns_that_cross_make_one_connection_of_real_kernels(lab: Lab) -> None:
    """What the simulated network promises of a simultaneous open, checked against the kernel."""
    one, two = lab.home(1, "port-restricted"), lab.home(2, "port-restricted")
    stream, family = socket.SOCK_STREAM, socket.AF_INET
    with (
        bound(one.host, PORT, stream, family) as listener,
        bound(two.host, PORT, stream, family) as other_listener,
        bound(one.host, PORT, stream, family) as near,
        bound(two.host, PORT, stream, family) as far,
    ):
        listener.listen()
        other_listener.listen()
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            near.connect((two.v4, PORT))  # dropped by the other router, and repeated by the kernel
        far.connect((one.v4, PORT))
        near.settimeout(PATIENCE_S)
        far.sendall(b"hello")
        assert near.recv(100) == b"hello"
        for unused in (listener, other_listener):
            unused.settimeout(0)
            with pytest.raises(BlockingIOError):
                unused.accept()


def test_a_laboratory_leaves_no_process_behind() -> None:
    need_lab()
    with Lab() as built:
        homes: list[Home | Public] = [built.public(1), built.home(2, "symmetric")]
        pids = [home.host.pid for home in homes]
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: PTH110
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: PTH110
