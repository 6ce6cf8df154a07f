"""The mesh's own step: two nodes behind NATs meet over a third, and then directly.

The network is simulated, because one machine has no NAT to show: hosts, routers and delays are
MemNet's (`p2p.net.memory`). The nodes are the real ones, with their encryption, and run in real
time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio
import trio.lowlevel

from daemon.demo.steps import until
from p2p.config import P2pConfig
from p2p.env import SeededEnv, SystemEnv
from p2p.errors import Unreachable
from p2p.identity import Identity
from p2p.nat.lan_config import LanConfig
from p2p.nat.punch_config import PunchConfig
from p2p.net.memnat import PORT_RESTRICTED
from p2p.net.memory import MemNet
from p2p.node import Node

if TYPE_CHECKING:
    from daemon.demo.show import Show
    from p2p.env import Env
    from p2p.net.memory import MemTransport
    from p2p.net.seam import Addr, Stream

ECHO: Final = "/covey-demo/echo/1"
PUBLIC_IPS: Final = ("45.77.1.10", "45.78.2.10")
HOMES: Final = (("10.0.1.2", "45.77.3.1"), ("10.0.2.2", "45.77.4.1"))
"""Each node's own address, and its router's."""
LATENCY_S: Final = 0.02
MEET_S: Final = 20.0
PLAIN_DIAL_S: Final = 2.0
"""Long enough for an answer over this network to come ten times over."""
PUNCH: Final = PunchConfig(dial_s=1.0)
"""The plain dial fails here, for sure: a shorter wait for it."""


async def nat(show: Show, env: Env) -> None:
    """Two homes, each behind a router that lets nobody in."""
    show.step("Two machines behind routers that let nobody in (a simulated network, real nodes)")
    net = MemNet(SeededEnv(1, "demo", trio.current_time), latency_s=LATENCY_S)
    async with trio.open_nursery() as nursery:
        helpers: list[Node] = []
        for ip in PUBLIC_IPS:
            helpers.append(await _node(nursery, net.host(ip), helpers, public=True))
        first, second = [
            await _node(
                nursery, net.host(inner, net.nat(outer, PORT_RESTRICTED)), helpers, public=False
            )
            for inner, outer in HOMES
        ]
        await _meet(show, env, first, second)
        nursery.cancel_scope.cancel()


async def _node(
    nursery: trio.Nursery, host: MemTransport, helpers: list[Node], *, public: bool
) -> Node:
    config = replace(
        P2pConfig.wan(),
        listen=("/ip4/0.0.0.0/tcp/4001",),
        reachability="public" if public else "private",
        local_net=LanConfig(discovery=False, announce=False),
        network_check_s=0,
        punch=PUNCH,
    )
    env = SystemEnv()
    node = Node(Identity.from_seed(env.rng.randbytes(32)), config, env, [host])
    node.set_members(lambda _: True)
    node.fabric.handle(ECHO, _echo, per_peer_max=4)
    await nursery.start(node.run)
    for helper in helpers:
        node.pin(helper.id, helper.fabric.addrs())
    return node


async def _echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def _meet(show: Show, env: Env, first: Node, second: Node) -> None:
    async def placed() -> bool:
        await trio.lowlevel.checkpoint()
        return any("/p2p-circuit" in addr for addr in second.fabric.addrs())

    began = env.now()
    show.check("one finds a relay among its peers by itself", await until(placed, MEET_S), began)
    addrs = second.fabric.addrs()
    direct = [addr for addr in addrs if "/p2p-circuit" not in addr]
    show.check("the other cannot dial it", not await _dials(first, second, direct))

    began = env.now()
    await first.fabric.connect(second.id, addrs)
    path = first.fabric.peers()[second.id].path
    stream = await first.fabric.open(second.id, ECHO)
    show.check("they meet over the relay", path == "relay" and await _answers(stream), began)

    async def punched() -> bool:
        await trio.lowlevel.checkpoint()
        return first.fabric.peers()[second.id].path == "direct"

    met = await until(punched, MEET_S)
    show.check("and then directly: both dialled at the same moment", met, began)
    show.check("a stream opened over the relay goes on unharmed", await _answers(stream))
    fresh = await first.fabric.open(second.id, ECHO)
    show.check("a new one takes the direct way", fresh.path == "direct" and await _answers(fresh))


async def _dials(node: Node, other: Node, addrs: list[Addr]) -> bool:
    with trio.move_on_after(PLAIN_DIAL_S):
        try:
            await node.fabric.connect(other.id, addrs)
        except Unreachable:
            return False
        return True
    return False


async def _answers(stream: Stream) -> bool:
    await stream.send_all(b"covey")
    return bytes(await stream.receive_some(5)) == b"covey"
