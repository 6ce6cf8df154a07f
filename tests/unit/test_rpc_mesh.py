"""What every node answers: who it is, that it is there, whom it knows - to members only."""

from __future__ import annotations

import pytest
import trio

from p2p.errors import AuthError, RemoteError, UsageError
from p2p.node import Node
from p2p.rpc import Code
from p2p.rpc_mesh import (
    ADDRS,
    ASKED_PEERS_MAX,
    ECHO,
    ECHO_BYTES_MAX,
    INFO,
    AddrsQuery,
    AddrsReply,
    Echo,
    InfoQuery,
    PeerAddrs,
)
from tests.helpers.fabrics import MEM, WIRE_MEM, Kit, identity, play

both_kinds = pytest.mark.parametrize("kind", [MEM, WIRE_MEM])


@both_kinds
def test_info_names_the_software_and_what_is_served(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        info = await first.rpc.call(second.id, INFO, InfoQuery())
        assert info.version.startswith("covey/")
        assert info.methods == ["mesh.addrs", "mesh.echo", "mesh.info"]

    play(kind, scenario)


@both_kinds
def test_echo_returns_up_to_64_kib_and_refuses_more(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        for size in (0, 1, ECHO_BYTES_MAX):
            data = bytes(range(256)) * (size // 256) + bytes(size % 256)
            assert (await first.rpc.call(second.id, ECHO, Echo(data))).data == data
        with pytest.raises(RemoteError) as caught:
            await first.rpc.call(second.id, ECHO, Echo(bytes(ECHO_BYTES_MAX + 1)))
        assert caught.value.code == Code.BAD_REQUEST

    play(kind, scenario)


@both_kinds
def test_two_members_introduced_by_a_third_find_each_other(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, middle = await kit.nodes()
        third = await kit.node(3)
        third.node.learn(middle.id, middle.fabric.addrs())
        await third.rpc.call(middle.id, INFO, InfoQuery())
        middle.node.learn(third.id, third.fabric.addrs())
        reply = await first.rpc.call(middle.id, ADDRS, AddrsQuery([third.id, identity(9).id]))
        assert [known.peer for known in reply.known] == [third.id]
        first.node.learn(third.id, reply.known[0].addrs)
        info = await first.rpc.call(third.id, INFO, InfoQuery())
        assert info.version

    play(kind, scenario)


def test_addresses_are_told_within_a_shared_group_only() -> None:
    async def scenario(kit: Kit) -> None:
        first, middle = await kit.nodes()
        friend, other = identity(10).id, identity(11).id
        for number, peer in enumerate((friend, other)):
            middle.node.learn(peer, [f"/ip4/10.0.0.{99 + number}/tcp/1"])
        middle.node.set_members(
            lambda peer: peer in {first.id, friend, other},
            introduces=lambda asker, subject: (asker, subject) == (first.id, friend),
        )
        asked = AddrsQuery([friend, other, first.id, friend])
        reply = await first.rpc.call(middle.id, ADDRS, asked)
        assert reply == AddrsReply([PeerAddrs(friend, ["/ip4/10.0.0.99/tcp/1"])])
        reply = await first.rpc.call(middle.id, ADDRS, AddrsQuery([middle.id]))
        assert reply == AddrsReply([PeerAddrs(middle.id, middle.fabric.addrs())])
        middle.node.set_members(lambda peer: peer in {first.id, friend})
        reply = await first.rpc.call(middle.id, ADDRS, asked)
        assert [known.peer for known in reply.known] == [friend], "a stranger's are not told"

    play(MEM, scenario)


def test_a_stranger_learns_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        second.node.set_members(lambda peer: peer == identity(9).id)
        with pytest.raises(AuthError):
            await first.rpc.call(second.id, INFO, InfoQuery())
        with pytest.raises(AuthError):
            await first.rpc.call(second.id, ECHO, Echo(b""))
        with pytest.raises(AuthError):
            await first.rpc.call(second.id, ADDRS, AddrsQuery([identity(9).id]))

    play(MEM, scenario)


@pytest.mark.parametrize(
    "peers",
    [[b"short"], [bytes(33)], [bytes(32)] * (ASKED_PEERS_MAX + 1)],
    ids=["short", "long", "many"],
)
def test_a_bad_question_is_refused(peers: list[bytes]) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        with pytest.raises(RemoteError) as caught:
            await first.rpc.call(second.id, ADDRS, AddrsQuery(peers))
        assert caught.value.code == Code.BAD_REQUEST

    play(MEM, scenario)


# --- The node around them -------------------------------------------------------------------------


@both_kinds
def test_a_report_shows_what_the_network_does(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        await first.rpc.call(second.id, INFO, InfoQuery())
        first.node.pin(second.id)
        report = first.node.report()
        assert report.id == first.id
        assert report.listen == tuple(first.fabric.addrs())
        assert list(report.peers) == [second.id]
        assert report.pinned == (second.id,)
        assert not report.paused
        assert report.counters["rpc_calls_out"] == 1
        assert second.node.report().counters["rpc_calls_in"] == 1
        first.node.unpin(second.id)
        first.node.pause()
        await trio.sleep(5)
        report = first.node.report()
        assert report.paused
        assert not report.peers
        assert not report.pinned
        first.node.resume()
        await first.rpc.call(second.id, INFO, InfoQuery())

    play(kind, scenario)


@both_kinds
def test_a_node_signs_as_itself_and_verifies_others(kind: str) -> None:
    async def scenario(kit: Kit) -> None:
        first, second = await kit.nodes()
        signature = first.node.sign(b"test-domain:", b"body")
        assert second.node.verify(first.id, b"test-domain:", b"body", signature)
        assert not second.node.verify(first.id, b"other-domain:", b"body", signature)
        assert not second.node.verify(second.id, b"test-domain:", b"body", signature)

    play(kind, scenario)


def test_a_node_speaks_for_one_identity_and_pins_others_only() -> None:
    async def scenario(kit: Kit) -> None:
        first, _ = await kit.nodes()
        with pytest.raises(UsageError, match="another identity"):
            Node.over(first.fabric, identity(5))
        with pytest.raises(UsageError, match="ourselves"):
            first.node.pin(first.id)

    play(MEM, scenario)
