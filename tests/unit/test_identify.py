"""identify and signed peer records: any cut, bounded, and nothing taken on somebody else's word."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import AuthError, DecodeError, LimitError, PeerError
from p2p.net.book import Book
from p2p.wire.envelope import (
    PEER_RECORD_DOMAIN,
    PEER_RECORD_TYPE,
    open_envelope_untrusted,
    open_peer_record_untrusted,
    seal_envelope,
    seal_peer_record,
)
from p2p.wire.identify import (
    IdentifyMessage,
    IdentifyReader,
    decode_identify_untrusted,
    encode_identify,
    frame,
    merge_identify,
)
from p2p.wire.protobuf import encode_message
from tests.helpers.wire_kit import HOLD, echo, exchange, identity, make, running, wait_for

if TYPE_CHECKING:
    from p2p.net.driver import Connection
    from p2p.net.wire_fabric import WireFabric

ADDR = "/ip4/192.0.2.1/tcp/15001"
FULL = IdentifyMessage(
    peer=identity(1).id,
    listen_addrs=(ADDR, "/ip6/2001:db8::1/tcp/15001"),
    protocols=("/a/1", "/b/1"),
    observed_addr="/ip4/192.0.2.9/tcp/40000",
    protocol_version="covey/1",
    agent="covey/0.1",
    signed_record=seal_peer_record(identity(1), 5, [ADDR]),
)


def test_a_message_reads_back() -> None:
    assert decode_identify_untrusted(encode_identify(FULL)) == FULL


def test_a_message_too_large_to_send_loses_its_record_and_last_protocols() -> None:
    names = tuple(f"/protocol/number/{n:04}" for n in range(400))
    sent = encode_identify(
        IdentifyMessage(peer=identity(1).id, protocols=names, signed_record=b"x")
    )
    assert len(sent) <= 4096
    back = decode_identify_untrusted(sent)
    assert back.signed_record == b""
    assert back.protocols == names[: len(back.protocols)]
    assert len(back.protocols) > 100


def test_absent_fields_change_nothing() -> None:
    assert merge_identify(FULL, IdentifyMessage()) == FULL
    renamed = merge_identify(FULL, IdentifyMessage(agent="other/1"))
    assert renamed.agent == "other/1"
    assert renamed.protocols == FULL.protocols


def test_addresses_that_are_not_understood_are_left_out() -> None:
    data = encode_message([(2, b"\xff\xff"), (2, bytes.fromhex("04c0000201063a99")), (4, b"\x01")])
    message = decode_identify_untrusted(data)
    assert message.listen_addrs == (ADDR,)
    assert message.observed_addr is None


@given(st.lists(st.integers(0, 2000), max_size=8), st.integers(1, 10))
def test_any_cut_of_up_to_ten_messages_merges_to_the_same(places: list[int], parts: int) -> None:
    wire = b"".join(
        frame(encode_identify(IdentifyMessage(agent=f"a{n}"))) for n in range(parts - 1)
    )
    wire += frame(encode_identify(FULL))
    edges = sorted({0, len(wire), *(place % (len(wire) + 1) for place in places)})
    reader = IdentifyReader()
    for a, b in itertools.pairwise(edges):
        reader.receive(wire[a:b])
    assert reader.end() == FULL


@pytest.mark.attack
def test_bombs_and_endless_messages_are_refused() -> None:
    with pytest.raises(LimitError):
        IdentifyReader().receive(frame(bytes(8193)))
    reader = IdentifyReader()
    reader.receive(frame(b"") * 10)
    with pytest.raises(LimitError):
        reader.receive(frame(b""))
    with pytest.raises(DecodeError):
        IdentifyReader().end()
    cut = IdentifyReader()
    cut.receive(b"\x05ab")
    with pytest.raises(DecodeError):
        cut.end()
    with pytest.raises(DecodeError):
        decode_identify_untrusted(encode_message([(6, b"\xff\xfe")]))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_message_or_a_peer_error(data: bytes) -> None:
    for read in (decode_identify_untrusted, open_peer_record_untrusted, IdentifyReader().receive):
        try:
            read(data)
        except PeerError:
            continue


def test_a_peer_record_reads_back_and_keeps_what_it_understands() -> None:
    record = open_peer_record_untrusted(seal_peer_record(identity(1), 7, [ADDR]))
    assert (record.peer, record.seq, record.addrs) == (identity(1).id, 7, (ADDR,))


@pytest.mark.attack
def test_a_record_changed_anywhere_is_refused() -> None:
    data = seal_peer_record(identity(1), 7, [ADDR])
    for index in range(len(data)):
        bad = bytearray(data)
        bad[index] ^= 1
        with pytest.raises(PeerError):
            open_peer_record_untrusted(bytes(bad))


@pytest.mark.attack
def test_a_record_about_somebody_else_or_of_another_kind_is_refused() -> None:
    other = encode_message([(1, bytes.fromhex("002408011220") + identity(2).id), (2, 1)])
    lie = seal_envelope(identity(1), PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, other)
    with pytest.raises(AuthError, match="another peer"):
        open_peer_record_untrusted(lie)
    # The same bytes signed in another domain, or offered as another type, prove nothing.
    elsewhere = seal_envelope(identity(1), b"other-domain", PEER_RECORD_TYPE, other)
    with pytest.raises(AuthError, match="signature"):
        open_peer_record_untrusted(elsewhere)
    with pytest.raises(DecodeError, match="another kind"):
        open_envelope_untrusted(lie, PEER_RECORD_DOMAIN, b"\x09")


def test_an_older_record_does_not_replace_a_newer_one() -> None:
    book = Book()
    assert book.put_record(identity(1).id, b"five", 5, 0)
    assert not book.put_record(identity(1).id, b"five again", 5, 0)
    assert not book.put_record(identity(1).id, b"four", 4, 0)
    assert book.put_record(identity(1).id, b"six", 6, 0)


async def test_a_protocol_served_later_is_pushed_to_connected_peers() -> None:
    a, b = make(1), make(2, push_delay_s=0.01)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        await exchange(a, b.id)
        await wait_for(
            lambda: all(c.remote_protocols for c in [*_connections(a), *_connections(b)])
        )
        [ours] = _connections(a)
        assert "/later/1" not in ours.remote_protocols
        b.handle("/later/1", echo, per_peer_max=1)
        await wait_for(lambda: "/later/1" in ours.remote_protocols)
        await wait_for(lambda: a.peers()[b.id].streams == 0)


def _connections(fabric: WireFabric) -> list[Connection]:
    return list(fabric._manager.table)


async def test_the_ping_protocol_echoes_in_32_byte_pieces_and_ends() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        stream = await a.open(b.id, "/ipfs/ping/1.0.0")
        await stream.send_all(b"p" * 40)
        got = b""
        while len(got) < 32:
            got += await stream.receive_some()
        assert got == b"p" * 32
        await stream.send_all(b"q" * 24)
        assert await stream.receive_some() == b"p" * 8 + b"q" * 24
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()


async def test_waiting_for_room_returns_when_there_is_some() -> None:
    a, b = make(1), make(2)
    async with running(a, b):
        await a.connect(b.id, b.addrs())
        stream = await a.open(b.id, HOLD)
        await stream.wait_send_all_might_not_block()
        for _ in range(2):  # the second fills what the first left free
            with trio.move_on_after(0.1) as scope:
                await stream.send_all(bytes(3_000_000))
            assert scope.cancelled_caught
        with trio.move_on_after(0.05) as scope:
            await stream.wait_send_all_might_not_block()
        assert scope.cancelled_caught
        stream.reset()
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        await exchange(a, b.id)
