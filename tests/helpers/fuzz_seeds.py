"""What mutations start from: good inputs of every format, of our own making and of the vectors.

Bytes in hexadecimal and texts of `tests/vectors/*.json` are among them, so a new format's vectors
are fuzzed from the day they are written.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from daemon.manifest import DATABASE, FORMAT, KEYS, FileEntry, Head
from daemon.manifest import Manifest as BackupManifest
from federated.jobs.items import (
    Ack,
    Beat,
    Cancel,
    Credit,
    Failed,
    Hello,
    Holding,
    Item,
    Load,
    Offer,
    Offered,
    OfferTask,
    Refusal,
    Reply,
    Result,
    Spec,
    TaskResult,
    Usage,
    encode_item,
    encode_results,
)
from federated.rounds.numeric.codec import CODECS
from federated.rounds.numeric.codec import encode as encode_update
from federated.rounds.pool.records import NO_SEGMENT, Dtype, Kind, Reason, Record
from federated.rounds.privacy import boxes
from federated.rounds.privacy import messages as masked
from federated.rounds.privacy.shamir import SHARE_BYTES
from federated.rounds.protocol import wire
from federated.rounds.protocol.policy import Policy
from federated.rounds.statistics.plain import (
    HistogramQuery,
    MeanQuery,
    QuantilesQuery,
    Query,
    contribution,
    encode_query,
)
from p2p.blobs.manifest import Manifest, encode_bitmap
from p2p.dht.keys import peer_record_key, value_key
from p2p.dht.messages import (
    DhtMessage,
    DhtPeer,
    DhtRecord,
    MessageType,
    encode_dht_message,
    encode_peer,
    frame,
)
from p2p.dht.records import seal_claim, seal_value
from p2p.identity import Identity, encode_public_key, peer_multihash, peer_text
from p2p.nat.punch_messages import PunchMessage, PunchType, encode_punch
from p2p.nat.relay_messages import (
    HopMessage,
    HopType,
    Reservation,
    Status,
    StopMessage,
    StopType,
    encode_hop,
    encode_stop,
)
from p2p.replication import messages
from p2p.replication.ranges import Initiator, RangeSet, Responder
from p2p.replication.record import RecordWire
from p2p.replication.state import encode_body
from p2p.wire.envelope import seal_peer_record
from p2p.wire.multistream import encode_line

ROOT: Final = Path(__file__).resolve().parents[2]
SEED_BYTES_MAX: Final = 4096
SEEDS_MAX: Final = 200
IDENTITY: Final = Identity.from_seed(bytes(range(32)))


MANIFEST: Final = BackupManifest(
    format=FORMAT,
    covey="0.1.0",
    sqlite="3.54.0",
    schema=2,
    created_ms=1_700_000_000_000,
    node="ab" * 32,
    records=3,
    bodies=2,
    memories=1,
    with_key=False,
    files={name: FileEntry(bytes=4096, sha256="cd" * 32) for name in (DATABASE, KEYS)},
    heads=[Head(group="01" * 32, incarnation=1, lane=1, seq=2, id="02" * 32)],
)


class Bag(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A type of every shape, for decoders that take a type."""

    number: int
    text: str
    blob: bytes
    many: tuple[bytes, ...]
    inner: RecordWire | None


class Params(msgspec.Struct, forbid_unknown_fields=True):
    """Params of a made-up method, for the envelope's decoder."""

    text: str
    limit: int = 10
    tags: list[str] = []


TEXTS: Final = (
    b"12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq",
    b"/ip4/192.0.2.7/tcp/15001/p2p/12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq",
    b"/ip6/2001:db8::7/tcp/15001",
    b"/dns4/example.org/tcp/443",
    b'{"jsonrpc":"2.0","id":1,"method":"memory.recall","params":{"text":"x","limit":5}}',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}',
    b'{"jsonrpc":"2.0","id":"a","result":{"tools":[]}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"none"}}',
    b'{"ids":[1,"two"]}',
    b'{"text":"x","limit":5,"tags":["a"],"_meta":{"deadline_ms":100}}',
    b'{"client":"covey/0.1.0","api":[1,0]}',
    b"memory://" + b"ab" * 32,
    b"kgEC",
    b"http://192.168.1.1:5000/rootDesc.xml",
    b"45.77.1.1",
)


def _range_messages() -> list[bytes]:
    """What two replicas say to each other until they know what differs."""
    items = [bytes([0, at]) * 20 for at in range(60)]
    ours, theirs = RangeSet(b"".join(items)), RangeSet(b"".join(items[3:]))
    initiator, responder = Initiator(ours, bytes(16)), Responder(theirs, bytes(16))
    made = [initiator.start()]
    while True:
        made.append(responder.receive(made[-1]))
        following = initiator.receive(made[-1])
        if following is None:
            return made
        made.append(following)


def _messages() -> list[bytes]:
    """Frames of replication without their length."""
    group, root = bytes(16), bytes(32)
    made: tuple[messages.Message, ...] = (
        messages.Hello(1, 1, (), bytes(16)),
        messages.Groups((group,)),
        messages.State(group, root, root),
        messages.Records(group, (RecordWire(b"header", bytes(64), None),)),
        messages.Heads(group, 1, ()),
        messages.Want(group, ()),
        *(messages.Recon(group, 1, message) for message in _range_messages()),
        messages.WantIds(group, (b"shortid1",)),
    )
    return [messages.encode_frame(message)[4:] for message in made]


def _record_parts() -> list[bytes]:
    """Envelopes of both kinds behind the byte that says which, and a bag."""
    encode = msgspec.msgpack.encode
    data = encode([bytes(16), bytes(16), bytes(60), bytes(40)])
    control = encode([bytes(16), b"payload"])
    wire = [b"header", bytes(64), control]
    return [
        b"\x20" + data,
        b"\x01" + control,
        encode(wire),
        encode([1, "text", b"blob", [b"a", b"b"], None]),
        encode([1, "text", b"blob", [], wire]),
    ]


def _bodies() -> list[bytes]:
    """Bodies of memory's records."""
    now_ms = 1_700_000_000_000
    note = ["agent", "scope", "note", "agent", None, "text", None, None, 1, now_ms]
    rest: list[object] = [None, None, ["tag"], None, None, [], None, None]
    return [
        msgspec.msgpack.encode([1, *note, *rest]),
        msgspec.msgpack.encode([6, "", "a machine"]),
        encode_body("agent", "map", ("todo", "x"), "put", {"a": [1, 2.5, None], "b": "text"}),
    ]


def _neighbours_bytes() -> list[bytes]:
    """What others in the local network, and the router, say."""
    messages = json.loads((ROOT / "tests/vectors/mdns.json").read_text("utf-8"))["messages"]
    replies = json.loads((ROOT / "tests/vectors/upnp.json").read_text("utf-8"))["replies"]
    whole = [text.encode("ascii") for text in replies.values()]
    return [
        *(bytes.fromhex(message) for message in messages.values()),
        *whole,
        *(reply.partition(b"\r\n\r\n")[2] for reply in whole),
        bytes.fromhex("0080000000000e102d4d0101"),
        bytes.fromhex("0082000000000e103a993a9900000e10"),
        bytes.fromhex("0082000200000e10"),
    ]


def _dht_bytes() -> list[bytes]:
    """A message of the DHT with all its fields, and the parts of it that have a decoder."""
    claim = seal_claim(IDENTITY, b"key", 1_700_000_000)
    record = seal_peer_record(IDENTITY, 7, ["/ip4/192.0.2.7/tcp/15001"])
    signed = DhtPeer(IDENTITY.id, (), record, claim)
    plain = DhtPeer(IDENTITY.id, ("/ip4/192.0.2.7/tcp/15001",))
    key = value_key(IDENTITY.id, b"name")
    message = DhtMessage(
        kind=MessageType.GET_PROVIDERS,
        key=key,
        record=DhtRecord(key, seal_value(IDENTITY, b"name", 7, 1_700_000_000, b"body")),
        closer=(plain,),
        providers=(signed,),
    )
    encode = msgspec.msgpack.encode
    return [
        encode_dht_message(message),
        encode_peer(signed),
        frame(message),
        key,
        peer_record_key(IDENTITY.id),
        encode([1, key, 7, 1_700_000_000, b"body"]),
        encode([1, b"key", 1_700_000_000]),
    ]


def _circuit_bytes() -> list[bytes]:
    """What relays, their clients and those who punch holes say to each other."""
    peer, addr = IDENTITY.id, "/ip4/192.0.2.7/tcp/15001"
    place = Reservation(1_700_000_000, (addr,), b"voucher")
    return [
        encode_hop(HopMessage(type=HopType.RESERVE)),
        encode_hop(HopMessage(type=HopType.CONNECT, peer=peer)),
        encode_hop(HopMessage(type=HopType.STATUS, reservation=place, status=Status.OK)),
        encode_stop(StopMessage(type=StopType.CONNECT, peer=peer)),
        encode_stop(StopMessage(type=StopType.STATUS, status=Status.OK)),
        encode_punch(PunchMessage(PunchType.CONNECT, (addr,))),
        encode_punch(PunchMessage(PunchType.SYNC)),
        f"{addr}/p2p/{peer_text(peer)}/p2p-circuit".encode(),
    ]


def _own_bytes() -> list[bytes]:
    """Bytes of our own making: keys, record parts, frames."""
    encode = msgspec.msgpack.encode
    key = IDENTITY.id
    return [
        key,
        encode_public_key(key),
        peer_multihash(key),
        IDENTITY.key_file_bytes(),
        seal_peer_record(IDENTITY, 7, ["/ip4/192.0.2.7/tcp/15001"]),
        *_messages(),
        *_range_messages(),
        *_dht_bytes(),
        *_record_parts(),
        *_bodies(),
        *_neighbours_bytes(),
        *_circuit_bytes(),
        *_job_bytes(),
        *_tensor_bytes(),
        *_question_bytes(),
        *_round_bytes(),
        *_round_codec_bytes(),
        *_pool_bytes(),
        *_masked_bytes(),
        Manifest(300_000, bytes(64)).encode(),
        encode_bitmap(0xF00FF, 20),
        encode([1, 15001, [[key, 1700, [["/ip4/192.0.2.7/tcp/15001", 0]], b"", 0]]]),
        encode([1, "mesh.echo", 1000, 65536, [1, "x"]]),
        encode([6, 4, "late", 0, True, b""]),
        bytes.fromhex("00 00 00 01 00 00 00 01 00 00 00 05") + b"hello",
        bytes.fromhex("00 01 00 02 00 00 00 01 00 04 00 00"),
        bytes.fromhex("00 02 00 01 00 00 00 00 12 34 56 78"),
        bytes.fromhex("00 03 00 00 00 00 00 00 00 00 00 00"),
        encode_line("/multistream/1.0.0") + encode_line("/noise"),
        encode_line("/multistream/1.0.0") + encode_line("ls"),
    ]


def _pool_bytes() -> list[bytes]:
    """Records between trainers and the host pool."""
    filled = Record(
        kind=Kind.FILLED, dtype=Dtype.F32, segment=7, generation=9, nbytes=400, weight=2.5, round=11
    )
    records = [
        Record(kind=Kind.LEND, dtype=Dtype.F32, nbytes=400, lane=3),
        filled,
        replace(filled, segment=NO_SEGMENT, generation=0, crc32=77),
        replace(filled, kind=Kind.DONE, offset=128),
        replace(filled, kind=Kind.RESULT, count=3),
        Record(kind=Kind.NACK, reason=Reason.FULL, count=Kind.LEND),
    ]
    return [record.encode() for record in records]


def _job_bytes() -> list[bytes]:
    """Items of job sessions, and results."""
    job, usage = bytes(16), Usage(wall_ms=3)
    results = [
        TaskResult(1, 77, "", 0, b'[[1,{"a":1}]]', False, bytes(32), usage, False),
        TaskResult(2, 78, "timeout", 500, b"", False, bytes(32), usage, False),
    ]
    items: list[Item] = [
        Hello(1, 9, [Offered("echo@1", "named", True, False, 2, 0, True)], None),
        Spec(job, None, "echo@1", b"{}", "say {{a}}", b"[]", 0, 0, 0, False, False),
        Offer(job, 10_000, [OfferTask(1, 77, b'[[1,{"a":1}]]', False, 60_000)]),
        Reply([(job, 1, 77)], [Refusal((job, 2, 78), "busy", 500)]),
        Beat([(job, 1, 77, True, 0.5)], Load(2, 1, 30, ["echo@1"], True, 255)),
        Result(job, encode_results(results), bytes(64)),
        Ack([(job, 1, 77)]),
        Cancel(job, [(1, 77)], False),
        Holding([(job, 1, 77, "running")]),
        Credit(66),
        Failed("decode", "no job item"),
    ]
    return [*(encode_item(item) for item in items), encode_results(results)]


def _round_codec_bytes() -> list[bytes]:
    """Encoded updates of one and of two blocks, each behind the byte that picks its codec."""
    values = [np.resize(np.array([0.0, 1.5, -0.01, 3e-5], np.float32), n) for n in (256, 512)]
    return [
        bytes([place]) + encode_update(name, array)
        for place, name in enumerate(CODECS)
        for array in values
    ]


def _masked_bytes() -> list[bytes]:
    """Messages of a masked sum of four members."""
    plan, everybody, three = bytes(32), b"\x0f" + bytes(7), b"\x07" + bytes(7)
    sealed = (b"", *(bytes([n]) * boxes.BOX_BYTES for n in range(3)))
    shares = (b"", *(bytes([n]) * SHARE_BYTES for n in range(3)))
    return [
        masked.encode(masked.Shares(plan, sealed)),
        masked.encode(masked.MaskSet(plan, everybody, sealed)),
        masked.encode(masked.Agree(plan, everybody, three)),
        masked.encode(masked.Reveal(plan, everybody, three, shares)),
    ]


def _tensor_bytes() -> list[bytes]:
    """A file of tensors and a schema of them, good ones."""
    spans = '"shape":[2],"data_offsets":'
    header = f'{{"a":{{"dtype":"F32",{spans}[0,8]}},"b":{{"dtype":"BF16",{spans}[8,12]}}}}'.encode()
    named = b'{"__metadata__":{"format":"pt"},' + header[1:]
    return [
        *(len(text).to_bytes(8, "little") + text + bytes(12) for text in (header, named)),
        msgspec.msgpack.encode([["a", [2], "f32"], ["b", [], "f16"], ["c", [0, 3], "bf16"]]),
    ]


def _round_bytes() -> list[bytes]:
    """Messages of a round, signed ones among them, and a policy."""
    head = (bytes(32), 7, 1, bytes(32))
    status = wire.MemberStatus(bytes(32), "late", "after the deadline", 3.5, 1.0, 10.0)
    made: list[wire.Message] = [
        wire.Tick(*head, "scatter", 12.5),
        wire.Commit(*head, (bytes(32),), 1.5, 10.0, {"loss": 0.25}),
        wire.Have(*head, 0, (bytes(32),), ((b"\1" * 32, "hash"),)),
        wire.Abort(*head, "below_quorum", (status,)),
    ]
    return [*(wire.encode(message) for message in made), msgspec.msgpack.encode(Policy())]


def _question_bytes() -> list[bytes]:
    """Questions to everybody's data, and what a member answers to two of them."""
    values = np.array([0.25, -3.0, 1e9])
    questions: list[Query] = [
        MeanQuery(name="x"),
        HistogramQuery(edges=(0.0, 1.0)),
        QuantilesQuery(q=(0.5,), bounds=(0.0, 60.0)),
    ]
    answers = [contribution(query, values).astype("<f8").tobytes() for query in questions[:2]]
    return [*(encode_query(query) for query in questions), *answers]


def _vector_bytes() -> tuple[list[bytes], list[bytes]]:
    """(bytes in hexadecimal, texts) of all golden vectors."""
    blobs: list[bytes] = []
    texts: list[bytes] = []
    for path in sorted((ROOT / "tests" / "vectors").rglob("*.json")):
        stack: list[object] = [json.loads(path.read_text("utf-8"))]
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                stack.extend(value.values())
            elif isinstance(value, list):
                stack.extend(value)
            elif isinstance(value, str) and len(value) <= 2 * SEED_BYTES_MAX:
                texts.append(value.encode("utf-8", "replace"))
                try:
                    blobs.append(bytes.fromhex(value))
                except ValueError:
                    continue
    return blobs, texts


def _kept(seeds: list[bytes]) -> tuple[bytes, ...]:
    """A bounded sample, spread over all of them: the first vectors must not crowd out the rest."""
    unique = list(dict.fromkeys(seed for seed in seeds if len(seed) <= SEED_BYTES_MAX))
    step = max(1, len(unique) // SEEDS_MAX)
    return tuple(unique[::step])


def binary() -> tuple[bytes, ...]:
    """Inputs of binary formats."""
    return (*_own_bytes(), *_kept(_vector_bytes()[0]))


def text() -> tuple[bytes, ...]:
    """Inputs of text formats, in UTF-8."""
    rows = b'[[1,{"a":1}],[2,null,"timeout"]]'
    return (*TEXTS, msgspec.json.encode(MANIFEST), rows, *_tickets(), *_kept(_vector_bytes()[1]))


def _tickets() -> list[bytes]:
    """Good tickets: few among many texts, so a sample of the vectors may hold none."""
    vectors = json.loads((ROOT / "tests" / "vectors" / "record_v1.json").read_text("utf-8"))
    return [ticket["text"].encode() for ticket in vectors["tickets"]]
