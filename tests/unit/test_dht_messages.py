"""Messages of the DHT: golden bytes both ways, malformed ones, limits."""

from __future__ import annotations

import pytest

from p2p.dht import messages
from p2p.dht.messages import (
    CLOSER_MAX,
    MESSAGE_BYTES_MAX,
    PROVIDERS_MAX,
    DhtMessage,
    DhtPeer,
    DhtRecord,
    MessageReader,
    MessageType,
    decode_dht_message_untrusted,
    encode_dht_message,
    frame,
)
from p2p.errors import DecodeError, LimitError
from p2p.identity import Identity, parse_peer_untrusted, peer_multihash
from p2p.wire.varint import encode_varint

PEER = parse_peer_untrusted("12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq")
MULTIHASH = "0024080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
ADDR = "/ip4/192.0.2.7/tcp/15001"
ADDR_HEX = "04c0000207063a99"

PLAIN = DhtPeer(PEER, (ADDR,))
PLAIN_HEX = "0a26" + MULTIHASH + "1208" + ADDR_HEX
SIGNED = DhtPeer(PEER, (), b"record", b"claim")
SIGNED_HEX = "0a26" + MULTIHASH + "2206" + b"record".hex() + "820405" + b"claim".hex()

GOLDEN = {
    "find": (DhtMessage(kind=MessageType.FIND_NODE, key=b"k"), "0804" + "12016b"),
    "get": (DhtMessage(kind=MessageType.GET_VALUE, key=b"k"), "0801" + "12016b"),
    "providers": (DhtMessage(kind=MessageType.GET_PROVIDERS, key=b"k"), "0803" + "12016b"),
    # The type is written even when it is 0.
    "put": (
        DhtMessage(kind=MessageType.PUT_VALUE, key=b"k", record=DhtRecord(b"k", b"v")),
        "0800" + "12016b" + "1a06" + "0a016b" + "120176",
    ),
    "add": (
        DhtMessage(kind=MessageType.ADD_PROVIDER, key=b"k", providers=(SIGNED,)),
        "0802" + "12016b" + "4a38" + SIGNED_HEX,
    ),
    "answer": (
        DhtMessage(
            kind=MessageType.GET_VALUE,
            key=b"k",
            record=DhtRecord(b"k", b"v"),
            closer=(PLAIN,),
        ),
        "0801" + "12016b" + "1a06" + "0a016b120176" + "4232" + PLAIN_HEX,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_both_ways(name: str) -> None:
    message, golden = GOLDEN[name]
    assert encode_dht_message(message).hex() == golden
    assert decode_dht_message_untrusted(bytes.fromhex(golden)) == message


def test_a_message_is_framed_by_its_length() -> None:
    message, golden = GOLDEN["find"]
    assert frame(message).hex() == "05" + golden


def test_an_absent_type_is_a_put_and_unknown_fields_are_skipped() -> None:
    found = decode_dht_message_untrusted(bytes.fromhex("12016b" + "500a" + "a20603616263"))
    assert found == DhtMessage(kind=MessageType.PUT_VALUE, key=b"k")


def test_what_other_software_sends_is_read() -> None:
    # timeReceived in a record, connection in a peer, clusterLevelRaw: none of ours.
    peer = PLAIN_HEX + "1801"
    record = "0a016b" + "120176" + "2a04" + b"2026".hex()
    data = "0801" + "5001" + "12016b" + "1a0c" + record + "4234" + peer
    found = decode_dht_message_untrusted(bytes.fromhex(data))
    assert found.record == DhtRecord(b"k", b"v")
    assert found.closer == (PLAIN,)


@pytest.mark.parametrize(
    "data",
    [
        "0805",  # PING is not served
        "08ff01",
        "0804" + "12ff",
        "0804" + "1281017f" + "00" * 128,
        "0804" + "1a02" + "0aff",
        "0804" + "1a84100a0012" + "ff0f" + "00" * 2047 + "0000",
        "0b",
        "ff" * 11,
    ],
)
def test_malformed_messages_are_refused(data: str) -> None:
    with pytest.raises(DecodeError):
        decode_dht_message_untrusted(bytes.fromhex(data))


def test_keys_values_and_messages_over_their_limits_are_refused() -> None:
    long_key = DhtMessage(kind=MessageType.FIND_NODE, key=bytes(129))
    with pytest.raises(DecodeError, match="key"):
        decode_dht_message_untrusted(encode_dht_message(long_key))
    big = DhtMessage(kind=MessageType.PUT_VALUE, key=b"k", record=DhtRecord(b"k", bytes(2049)))
    with pytest.raises(DecodeError, match="value"):
        decode_dht_message_untrusted(encode_dht_message(big))
    with pytest.raises(DecodeError, match="64 KiB"):
        decode_dht_message_untrusted(bytes(MESSAGE_BYTES_MAX + 1))


def test_bad_peers_are_skipped_and_their_neighbours_kept() -> None:
    rsa = "0a22" + "1220" + "00" * 32
    oversize = "0a26" + MULTIHASH + "228110" + "00" * 2049
    parts = [rsa, oversize, "ff", PLAIN_HEX, PLAIN_HEX]
    data = "0804" + "".join("42" + encode_varint(len(p) // 2).hex() + p for p in parts)
    assert decode_dht_message_untrusted(bytes.fromhex(data)).closer == (PLAIN,)


def test_addresses_beside_a_record_are_not_read() -> None:
    both = DhtPeer(PEER, (ADDR,), b"record")
    message = DhtMessage(kind=MessageType.FIND_NODE, closer=(both,))
    found = decode_dht_message_untrusted(encode_dht_message(message))
    assert found.closer == (DhtPeer(PEER, (), b"record"),)


def many(count: int, **parts: bytes) -> tuple[DhtPeer, ...]:
    ids = [Identity.from_seed(n.to_bytes(4, "big") * 8).id for n in range(count)]
    return tuple(DhtPeer(peer, (), **parts) for peer in ids)


def test_of_thousands_of_peers_the_first_are_read() -> None:
    crowd = many(100)
    message = DhtMessage(kind=MessageType.GET_PROVIDERS, closer=crowd, providers=crowd)
    found = decode_dht_message_untrusted(encode_dht_message(message))
    assert (found.closer, found.providers) == (crowd[:CLOSER_MAX], crowd[:PROVIDERS_MAX])


def test_the_largest_answer_fits_and_a_larger_one_loses_its_last_peers() -> None:
    # Twenty nodes and twenty providers at their largest.
    closer, providers = many(20, signed_record=bytes(2048)), many(64, signed_record=bytes(2048))
    message = DhtMessage(kind=MessageType.GET_PROVIDERS, closer=closer, providers=providers)
    data = encode_dht_message(message)
    assert len(data) <= MESSAGE_BYTES_MAX
    found = decode_dht_message_untrusted(data)
    assert found.closer == closer[: len(found.closer)]
    assert found.providers == providers[: len(found.providers)]
    assert len(found.providers) >= 1
    assert len(found.closer) + len(found.providers) > 20


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_is_cut_into_messages_whatever_its_pieces(size: int) -> None:
    data = b"".join(frame(message) for message, _ in GOLDEN.values())
    reader, found = MessageReader(), []
    assert reader.is_between
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while (message := reader.next_message_untrusted()) is not None:
            found.append(message)
    assert found == [message for message, _ in GOLDEN.values()]
    assert reader.is_between
    reader.feed(data[:3])
    assert reader.next_message_untrusted() is None
    assert not reader.is_between


def test_an_announced_giant_is_refused_before_it_comes() -> None:
    reader = MessageReader()
    reader.feed(encode_varint(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(LimitError):
        reader.next_message_untrusted()


def test_remembered_peers_are_the_same_as_fresh_ones() -> None:
    # Encoding and decoding of peers is cached.
    for _ in range(2):
        message, golden = GOLDEN["add"]
        assert decode_dht_message_untrusted(bytes.fromhex(golden)) == message
    assert messages._decode_peer_untrusted.cache_info().hits > 0
    assert peer_multihash(PEER).hex() == MULTIHASH
