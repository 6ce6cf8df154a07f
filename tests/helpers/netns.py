"""A small internet of Linux network namespaces: a bridge, public hosts, homes behind real NATs.

A namespace has no name: a `cat` holds it, and ends when its stdin does. So whatever becomes of the
test process, killed or not, nothing of the laboratory outlives it, and two runs never meet.

    with Lab() as lab:
        server = lab.public(1)
        home = lab.home(2, "port-restricted")
        with home.host.entered():
            sock = socket.socket(...)          # lives in the host's namespace from here on
        home.host.popen("python", "peer.py")

Addresses are real public ones, 45.0.0.0/8 and 2001::/16 on one link; they exist in here only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from tests.helpers.need import everything_is_required, unmet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Kind: TypeAlias = Literal["full-cone", "restricted", "port-restricted", "symmetric"]
KINDS: Final[tuple[Kind, ...]] = ("full-cone", "restricted", "port-restricted", "symmetric")

ROOT: Final = Path(__file__).resolve().parents[2]
TOOLS: Final = ("ip", "nft", "nsenter", "unshare")
REMEDY: Final = (
    "run as root (or the whole test run under `unshare -r --net`), with iproute2 and nftables "
    "installed, for example `apt-get install iproute2 nftables`"
)
COMMAND_S: Final = 30.0
"""Ends a hang, decides nothing."""
_CLONE_NEWNET: Final = 0x40000000


def need_lab() -> None:
    """Go on only where a laboratory can be built; installs its tools where all is required."""
    if everything_is_required() and any(shutil.which(tool) is None for tool in TOOLS):
        script = ". tools/system.sh; system_package iproute2 nftables util-linux"
        subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=280
        )
    problem = _problem()
    if problem is not None:
        unmet(problem, REMEDY)


def _problem() -> str | None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"no `{tool}` on PATH"
    probe = subprocess.run(
        ["unshare", "--net", "nft", "add", "table", "ip", "probe"],
        capture_output=True,
        check=False,
        text=True,
        timeout=COMMAND_S,
    )
    if probe.returncode != 0:
        return f"no network namespaces with nftables here ({probe.stderr.strip()})"
    return None


class Space:
    """One network namespace.

    Args:
        name: for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        # Addresses are valid at once: nobody else has them.
        self.run(
            "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up"
        )

    @property
    def pid(self) -> int:
        """The process that holds it, by which `ip` and `nsenter` find it."""
        return self._holder.pid

    def words(self, *command: str) -> list[str]:
        """The command line that runs `command` in here."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]

    def run(self, *command: str, script: str = "") -> str:
        """Run a command in here to its end; its output."""
        done = subprocess.run(
            self.words(*command),
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, f"{self.name}: {command}\n{script}\n{done.stderr}"
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Run lines of `ip` in here."""
        self.run("ip", "-force", "-batch", "-", script="\n".join(lines) + "\n")

    def popen(self, *command: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a command in here, its stdin and stdout as pipes."""
        return subprocess.Popen(
            self.words(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in here: sockets that this thread makes inside the block live in here for ever."""
        with open("/proc/thread-self/ns/net", "rb") as home:  # noqa: PTH123 - a descriptor is wanted
            with open(f"/proc/{self.pid}/ns/net", "rb") as there:  # noqa: PTH123
                _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def close(self) -> None:
        """Let the namespace go, with every interface in it."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(COMMAND_S)
        self._holder.stdout.close()


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass(frozen=True)
class Public:
    """A host in the open: every packet to it arrives."""

    host: Space
    v4: str
    v6: str


@dataclass(frozen=True)
class Home:
    """A host behind a router of its own."""

    host: Space
    router: Space
    v4: str
    """The router's address, as which the host is seen."""
    v6: str
    """The host's own: nobody translates IPv6."""


HOST_V4: Final = "10.0.1.2"
"""Every home has the same addresses inside, as real ones do."""


class Lab:
    """The bridge that is the internet, and what is plugged into it. Numbers are 1 to 99."""

    def __init__(self) -> None:
        self._spaces: list[Space] = []
        self._bridge = self.space("internet")
        self._bridge.ip("link add br0 type bridge forward_delay 0", "link set br0 up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let everything go."""
        while self._spaces:
            self._spaces.pop().close()

    def space(self, name: str) -> Space:
        """A namespace with nothing in it but the loopback."""
        space = Space(name)
        self._spaces.append(space)
        return space

    def public(self, number: int, families: str = "46") -> Public:
        """A host in the open, in an IPv4 /16 and an IPv6 /32 of its own.

        Args:
            number: decides its addresses.
            families: "4", "6" or both.
        """
        host = self.space(f"public {number}")
        v4, v6 = f"45.{100 + number}.1.10", f"2001:{0x4000 + number:x}:a::10"
        self._plug(host, number, v4 if "4" in families else "", v6 if "6" in families else "")
        return Public(host, v4, v6)

    def home(self, number: int, kind: Kind, families: str = "46") -> Home:
        """A host behind a NAT of that kind on IPv4, and behind a stateful firewall on IPv6.

        Args:
            number: decides its addresses.
            kind: of the NAT.
            families: "4", "6" or both; what is left out does not exist in the home.
        """
        router, host = self.space(f"router {number}"), self.space(f"host {number}")
        v4, net6 = f"45.{100 + number}.1.1", f"2001:{0x4000 + number:x}"
        self._plug(router, number, v4, f"{net6}:a::1")
        router.ip(f"link add lan type veth peer name eth0 netns {host.pid}", "link set lan up")
        host.ip("link set eth0 up")
        if "4" in families:
            router.ip("addr add 10.0.1.1/24 dev lan")
            host.ip(f"addr add {HOST_V4}/24 dev eth0", "route add default via 10.0.1.1")
        if "6" in families:
            router.ip(f"addr add {net6}:c::1/64 dev lan nodad")
            host.ip(f"addr add {net6}:c::2/64 dev eth0 nodad", f"route add default via {net6}:c::1")
        # The host's IPv6 address counts as on the link outside; the router answers for it there.
        settings = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/wan/proxy_ndp")
        router.run("sh", "-c", "; ".join(f"echo 1 >/proc/sys/net/{name}" for name in settings))
        # By default such an answer is held back for up to 0.8 s.
        router.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/neigh/wan/proxy_delay")
        router.ip(f"neigh add proxy {net6}:c::2 dev wan")
        router.run("nft", "-f", "-", script=nat_rules(kind))
        return Home(host, router, v4, f"{net6}:c::2")

    def _plug(self, space: Space, number: int, v4: str, v6: str) -> None:
        space.ip(
            f"link add wan type veth peer name port{number} netns {self._bridge.pid}",
            "link set wan up",
            *([f"addr add {v4}/8 dev wan"] if v4 else []),
            *([f"addr add {v6}/16 dev wan nodad"] if v6 else []),
        )
        self._bridge.ip(f"link set port{number} master br0 up")

    def cut(self, number: int) -> None:
        """Pull the plug of a host or home."""
        self._bridge.ip(f"link set port{number} down")

    def mend(self, number: int) -> None:
        """Put it back."""
        self._bridge.ip(f"link set port{number} up")


def nat_rules(kind: Kind) -> str:
    """The router's nftables rules, in the words of RFC 4787.

    Linux maps a port to itself for every target while it is free (endpoint-independent), or draws
    one for each (`fully-random`); connection tracking lets in answers alone (address- and
    port-dependent). What is more open than that forwards by rules. Nothing from outside reaches the
    router itself: its reset would end a punch.
    """
    open_to = {
        "full-cone": 'iifname "wan" accept',
        "restricted": 'iifname "wan" ip saddr @seen accept',
        "port-restricted": "",
        "symmetric": "",
    }[kind]
    inward = f'iifname "wan" meta l4proto {{ tcp, udp }} dnat to {HOST_V4}' if open_to else ""
    drawn = "fully-random" if kind == "symmetric" else ""
    return f"""
table ip nat {{
    chain before {{
        type nat hook prerouting priority -100
        {inward}
    }}
    chain after {{
        type nat hook postrouting priority 100
        oifname "wan" masquerade {drawn}
    }}
}}
table ip filter {{
    set seen {{
        type ipv4_addr
        flags timeout
    }}
    chain forward {{
        type filter hook forward priority 0
        policy drop
        oifname "wan" update @seen {{ ip daddr timeout 120s }}
        ct state established,related accept
        iifname "lan" accept
        {open_to}
    }}
    chain input {{
        type filter hook input priority 0
        iifname "wan" ct state new,invalid drop
    }}
}}
table ip6 filter {{
    chain forward {{
        type filter hook forward priority 0
        policy drop
        ct state established,related accept
        iifname "lan" accept
    }}
    chain input {{
        type filter hook input priority 0
        iifname "wan" meta l4proto {{ tcp, udp }} ct state new,invalid drop
    }}
}}
"""
