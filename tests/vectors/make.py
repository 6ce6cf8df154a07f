"""Writes record_v1.json: golden vectors of records, payloads, seals, tickets and check words.

An encoder of its own. It shares no code with Covey, only docs/specs/record.md and ticket.md:
another MessagePack library, other functions, the same bytes. Run it from the repository root; a
test checks that the file it writes is the one committed.
"""

import base64
import hashlib
import hmac
import json
from pathlib import Path

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = Path(__file__).parent
WORDS = HERE.parent.parent / "p2p" / "data" / "bip39_english.txt"
L = 2**252 + 27742317777372353535851937790883648493
T0_MS = 1_700_000_000_000
SMALL_ORDER = {
    "y = 0": bytes(32),
    "y = 1, the identity": b"\x01" + bytes(31),
    "y = 1, sign bit set": b"\x01" + bytes(30) + b"\x80",
    "y = p - 1": (2**255 - 20).to_bytes(32, "little"),
    "order 8": bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    "order 8, the other": bytes.fromhex(
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
    ),
    "y = p, that is 0 again": (2**255 - 19).to_bytes(32, "little"),
    "y = p + 1, that is 1 again": (2**255 - 18).to_bytes(32, "little"),
}
LOW_ORDER_X = {
    "u = 0": bytes(32),
    "u = 1": b"\x01" + bytes(31),
    "order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "order 8, the other": bytes.fromhex(
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"
    ),
    "u = p - 1": (2**255 - 20).to_bytes(32, "little"),
}


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def seed(label):
    return sha(b"covey vector ", label.encode())


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


class Device:
    def __init__(self, name):
        self.key = Ed25519PrivateKey.from_private_bytes(seed(name))
        self.id = self.key.public_key().public_bytes_raw()

    def sign(self, domain, body):
        return self.key.sign(domain + body)


def exchange(name):
    private = X25519PrivateKey.from_private_bytes(seed(name))
    return private, private.public_key().public_bytes_raw()


ALICE, BOB, OWNER, RECOVERY = Device("alice"), Device("bob"), Device("owner"), Device("recovery")
ALICE_X, ALICE_XPUB = exchange("alice exchange")
BOB_X, BOB_XPUB = exchange("bob exchange")
EPOCH_KEY, TAG_KEY = seed("epoch key"), seed("tag key")
SECRET = EPOCH_KEY + TAG_KEY
INVITE_SEED = seed("invite")


def record_id(header):
    return sha(b"covey/record-id/1\0", header)


def commit(envelope):
    return sha(b"covey/body/1\0", envelope)


def header_fields(kind, group, author, seq, prev, envelope, **other):
    fields = {
        "version": 1,
        "kind": kind,
        "group": group,
        "author": author,
        "incarnation": 1_700_000_000,
        "seq": seq,
        "prev": prev,
        "hlc": (T0_MS + seq) << 16,
        "auth": [],
        "key_tag": None,
        "supersedes": [],
        "body_commit": commit(envelope),
        "body_size": len(envelope),
        "flags": 0,
    }
    assert set(other) <= set(fields)
    fields.update(other)
    return fields


def sign(device, fields, envelope):
    header = pack(list(fields.values()))
    signature = device.sign(b"covey/record/1\0", header)
    return header, signature, pack([header, signature, envelope])


def control(name, payload):
    return pack([seed("salt " + name)[:16], payload])


def aad(group, author, incarnation, seq):
    where = incarnation.to_bytes(4, "big") + seq.to_bytes(8, "big")
    return b"covey/aead/1\0" + group + author + where


def data(name, plain, epoch, group, author, incarnation, seq):
    salt, data_key, nonce = seed("s" + name)[:16], seed("k" + name), seed("n" + name)[:12]
    context = aad(group, author, incarnation, seq)
    ct = ChaCha20Poly1305(data_key).encrypt(bytes(12), plain, context)
    wrap = nonce + ChaCha20Poly1305(EPOCH_KEY).encrypt(nonce, data_key, context)
    return pack([salt, epoch, wrap, ct]), (salt + data_key + nonce)


# HPKE, RFC 9180: base mode, DHKEM(X25519, HKDF-SHA256) 0x0020, HKDF-SHA256 1, ChaCha20Poly1305 3.


def extract(suite, salt, label, ikm):
    return hmac.new(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256").digest()


def expand(suite, prk, label, info, length):
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\x01"
    return hmac.new(prk, labeled, "sha256").digest()[:length]


def hpke_seal(ephemeral, public, info, plain):
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"
    enc = ephemeral.public_key().public_bytes_raw()
    dh = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    shared = expand(kem, extract(kem, b"", b"eae_prk", dh), b"shared_secret", enc + public, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"")
    context += extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    key = expand(suite, secret, b"key", context, 32)
    nonce = expand(suite, secret, b"base_nonce", context, 12)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, plain, b"")


def seal(name, domain, group, public, plain):
    ephemeral, _ = exchange("ephemeral " + name)
    return hpke_seal(ephemeral, public, domain + group, plain)


def invite_key(group):
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"covey/invite/1\0" + group)
    return Ed25519PrivateKey.from_private_bytes(kdf.derive(INVITE_SEED))


class Chain:
    """One log, and the list of vectors it grows into."""

    def __init__(self, device, out, group=None, auth=()):
        self.device, self.out, self.group, self.auth = device, out, group, list(auth)
        self.seq, self.prev = 0, None

    def add(self, name, kind, payload=None, plain=None, **other):
        self.seq += 1
        incarnation = 1_700_000_000
        rand = None
        if plain is None:
            body = pack(payload)
            envelope = control(name, body)
        else:
            body = plain
            epoch = other.pop("epoch")
            place = (self.group, self.device.id, incarnation, self.seq)
            envelope, rand = data(name, plain, epoch, *place)
        other.setdefault("auth", sorted(self.auth))
        other.setdefault("hlc", ((T0_MS + len(self.out) * 1000) << 16) + 7)
        fields = header_fields(
            kind, self.group, self.device.id, self.seq, self.prev, envelope, **other
        )
        header, signature, wire = sign(self.device, fields, envelope)
        ident = record_id(header)
        vector = {
            "name": name,
            "header_fields": plainly(fields),
            "header": header.hex(),
            "id": ident.hex(),
            "signature": signature.hex(),
            "wire_sha256": sha(wire).hex(),
        }
        if len(envelope) < 10_000:
            vector["envelope"] = envelope.hex()
        if plain is None:
            vector["payload"] = body.hex()
            vector["payload_fields"] = plainly(payload)
        else:
            vector["plain"] = hexed(plain)
            vector["random"] = rand.hex()
        self.out.append(vector)
        self.prev = ident
        return ident, header, signature


def hexed(raw):
    """Bytes as hex; a long run of one byte at the end as `+xx*count`, to keep the file small."""
    run = len(raw) - len(raw.rstrip(raw[-1:])) if raw else 0
    if run < 1_000:
        return raw.hex()
    return f"{raw[:-run].hex()}+{raw[-1:].hex()}*{run}"


def plainly(value):
    """JSON's idea of a value: bytes as hex."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: plainly(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plainly(v) for v in value]
    return value


def records():
    out = []
    alice = Chain(ALICE, out)
    genesis = [
        ALICE_XPUB,
        RECOVERY.id,
        1,
        sha(b"covey/tag-key/1\0", TAG_KEY),
        [200_000, 256 * 1024 * 1024, 4_096],
        seed("genesis")[:16],
    ]
    group, _, _ = alice.add("genesis", 1, genesis)
    alice.group, alice.auth = group, [group]
    shares = [[ALICE.id, seal("epoch", b"covey/seal/1\0", group, ALICE_XPUB, SECRET)]]
    epoch, _, _ = alice.add("epoch", 12, [sha(b"covey/epoch/1\0", SECRET), shares])
    key = invite_key(group)
    invite, _, _ = alice.add(
        "invite",
        4,
        [key.public_key().public_bytes_raw(), 2, 1, T0_MS // 1000 + 600, 0],
    )
    bob = Chain(BOB, out, group, [invite])
    proof = key.sign(b"covey/join/1\0" + group + BOB.id + BOB_XPUB)
    join, _, _ = bob.add("join", 6, [invite, BOB_XPUB, proof])
    alice.auth = [join]
    admit, _, _ = alice.add("admit", 7, [join])
    alice.auth = [admit]
    share = seal("share", b"covey/seal/1\0", group, BOB_XPUB, SECRET)
    alice.add("key_share", 13, [BOB.id, [[epoch, share]]])
    close, _, _ = alice.add("invite_close", 5, [invite])
    alice.auth = [close]
    grant, _, _ = alice.add("grant", 2, [BOB.id, 3])
    alice.auth = [grant]
    policy, _, _ = alice.add("policy", 8, [[100_000, 2**40, 512]])
    alice.auth = [policy]
    sealed_seed = seal("owner", b"covey/seal-owner/1\0", group, ALICE_XPUB, seed("owner"))
    vouchers = sorted([d.id, OWNER.sign(b"covey/owner/1\0", d.id)] for d in (ALICE, BOB))
    alice.add("owner_key", 21, [OWNER.id, [[ALICE.id, sealed_seed]], vouchers])
    alice.add("owner", 20, [OWNER.id, OWNER.sign(b"covey/owner/1\0", ALICE.id)])
    keep = [[1_699_999_999, 0, 3], [1_699_999_999, 1, 70_000], [1_700_000_000, 1, 2**40]]
    alice.add("limit", 3, [BOB.id, keep, 1_700_000_001, 0])
    # Two headers of one log and seq: here of Bob's, his join and another record in its place.
    other = header_fields(20, group, BOB.id, 1, None, b"", auth=[group])
    other_header, other_signature, _ = sign(BOB, other, None)
    first = out[3]
    alice.add(
        "fork_proof",
        18,
        [
            bytes.fromhex(first["header"]),
            bytes.fromhex(first["signature"]),
            other_header,
            other_signature,
        ],
    )
    alice.add("erase", 14, [sorted([join, admit]), 1])
    alice.add("unknown control kind", 30, ["from a later version", 1])
    alice.add("unknown authority kind", 11, [1, 2, 3])
    alice.add("erase ack", 15, [sorted([[join, 3, 0], [admit, 0, 1]])])
    # Data: a chain of its own, under the epoch's first 16 bytes.
    pen = Chain(ALICE, out, group, [policy])
    pen.add("entry", 32, plain="naïve café".encode(), epoch=epoch[:16])
    tag = hmac.new(TAG_KEY, b"covey/key/1\0lww\0" + pack(["notes", "x"]), "sha256").digest()[:16]
    pen.add("state", 33, plain=b"v", epoch=epoch[:16], key_tag=tag, supersedes=[pen.prev])
    many = sorted(seed(f"id {i}") for i in range(8))
    pen.add("largest header", 127, plain=b"", epoch=epoch[:16], key_tag=tag, supersedes=many,
            auth=many, hlc=2**63 - 1)  # fmt: skip
    pen.add("largest body", 32, plain=b"\xff" * 65_536, epoch=epoch[:16], hlc=2**62)
    return out, group, epoch


def bad_headers(group):
    """(name, header bytes, piece of the error)."""
    good = header_fields(32, group, ALICE.id, 1, None, b"", auth=[group])
    two, three = sorted([seed("a"), seed("b")]), sorted(seed(f"x{i}") for i in range(9))

    def changed(**fields):
        return pack(list({**good, **fields}.values()))

    genesis = {**good, "kind": 1, "group": None, "auth": []}
    plain = pack(list(good.values()))
    assert plain[0] == 0x9E
    return [
        ("version 2", changed(version=2), "int"),
        ("kind 0", changed(kind=0), "int"),
        ("kind 128", changed(kind=128), "int"),
        ("flag set", changed(flags=1), "int"),
        ("no group in a grant", changed(kind=2, group=None), "names no group"),
        ("a group in a genesis", pack(list({**genesis, "group": group}.values())), "no group"),
        ("no authority in an entry", changed(auth=[]), "cites no authority"),
        ("authority in a genesis", pack(list({**genesis, "auth": [group]}.values())), "authority"),
        (
            "a genesis at seq 2",
            pack(list({**genesis, "seq": 2, "prev": group}.values())),
            "first record",
        ),
        ("no prev at seq 2", changed(seq=2), "prev"),
        ("prev at seq 1", changed(prev=group), "prev"),
        ("seq 0", changed(seq=0), "int"),
        ("seq negative", changed(seq=-1), "int"),
        ("seq 2^63", changed(seq=2**63, prev=group), "int"),
        ("incarnation 0", changed(incarnation=0), "int"),
        ("incarnation 2^32", changed(incarnation=2**32), "int"),
        ("hlc 0", changed(hlc=0), "int"),
        ("hlc 2^63", changed(hlc=2**63), "int"),
        ("hlc a float", changed(hlc=1.0), "float"),
        ("flags a bool", changed(flags=False), "bool"),
        ("author as text", changed(author="a" * 32), "str"),
        ("author of 31 bytes", changed(author=ALICE.id[:31]), "bytes"),
        ("author absent", changed(author=None), "bytes"),
        ("auth of nine", changed(auth=three), "array"),
        ("auth descending", changed(auth=two[::-1]), "auth does not ascend"),
        ("auth twice the same", changed(auth=[group, group]), "auth does not ascend"),
        ("auth of 33 bytes", changed(auth=[group + b"x"]), "bytes"),
        ("auth a map", changed(auth={}), "object"),
        ("supersedes of nine", changed(supersedes=three), "array"),
        ("supersedes descending", changed(supersedes=two[::-1]), "supersedes does not ascend"),
        ("key tag of 15 bytes", changed(key_tag=b"k" * 15), "bytes"),
        ("body commitment of 31 bytes", changed(body_commit=b"c" * 31), "bytes"),
        ("body over its limit", changed(body_size=65_793), "int"),
        ("array16", b"\xdc\x00\x0e" + plain[1:], "smallest"),
        ("a long integer", b"\x9e\xcc\x01" + plain[2:], "smallest"),
        ("bin16", plain.replace(b"\xc4\x20", b"\xc5\x00\x20", 1), "smallest"),
        ("an element too many", b"\x9f" + plain[1:] + b"\x00", "length"),
        ("an element missing", b"\x9d" + plain[1:-1], "length"),
        ("a byte behind it", plain + b"\x00", "trailing"),
        ("cut short", plain[:-5], "truncated"),
        ("a map", pack(good), "array"),
        ("an extension", b"\xd4\x01\x00", "array"),
        ("empty", b"", "truncated"),
        ("deep nesting", b"\x91" * 1_000, "array"),
        ("over its limit", plain + bytes(1_025 - len(plain)), "at most 1024"),
    ]


def bad_payloads(group):
    """(name, kind, payload bytes, piece of the error)."""
    alice, low = ALICE.id, LOW_ORDER_X["u = 0"]
    ids = sorted([ALICE.id, BOB.id])
    sealed = bytes(112)
    out = [
        ("grant, role 4", 2, pack([alice, 4]), "4"),
        ("grant, an element too many", 2, pack([alice, 2, 0]), "length"),
        ("grant, role as a bool", 2, pack([alice, True]), "bool"),
        ("limit, keep descending", 3, pack([alice, [[2, 0, 1], [1, 0, 1]], 3, 0]), "ascend"),
        ("limit, one log twice", 3, pack([alice, [[1, 0, 1], [1, 0, 2]], 3, 0]), "ascend"),
        ("limit, lane 2", 3, pack([alice, [[1, 2, 1]], 3, 0]), "int"),
        ("limit, reason 256", 3, pack([alice, [], 3, 256]), "int"),
        ("invite, no use", 4, pack([alice, 2, 0, 0, 0]), "int"),
        ("invite, accept 2", 4, pack([alice, 2, 1, 0, 2]), "int"),
        ("join, signature of 63 bytes", 6, pack([group, BOB_XPUB, b"s" * 63]), "bytes"),
        ("genesis, home 2", 1, pack([ALICE_XPUB, None, 2, group, None, b"r" * 16]), "int"),
        ("epoch, sealed of 111 bytes", 12, pack([group, [[alice, b"s" * 111]]]), "bytes"),
        ("epoch, members descending", 12, pack([group, [[i, sealed] for i in ids[::-1]]]), "asc"),
        ("key share, one epoch twice", 13, pack([alice, [[group, sealed]] * 2]), "ascend"),
        ("erase, 257 ids", 14, pack([sorted(seed(str(i)) for i in range(257)), 0]), "array"),
        ("erase, ids descending", 14, pack([ids[::-1], 0]), "ascend"),
        ("erase ack, ids descending", 15, pack([[[i, 1, 0] for i in ids[::-1]]]), "ascend"),
        ("erase ack, done 2", 15, pack([[[ids[0], 1, 2]]]), "int"),
        ("owner key, sealed of 79 bytes", 21, pack([alice, [[alice, b"s" * 79]], []]), "bytes"),
        ("owner key, devices descending", 21,
         pack([alice, [], [[i, b"s" * 64] for i in ids[::-1]]]), "ascend"),
        ("policy, a bare array", 8, pack([1, 2, 3]), "array"),
        ("admit, array16", 7, b"\xdc\x00\x01" + pack(group), "smallest"),
        ("admit, over its limit", 7, pack([group]) + bytes(65_536), "at most 65536"),
    ]  # fmt: skip
    for name, key in SMALL_ORDER.items():
        out += [
            (f"grant, member {name}", 2, pack([key, 2]), "public key"),
            (f"invite, key {name}", 4, pack([key, 2, 1, 0, 0]), "public key"),
            (f"owner, key {name}", 20, pack([key, bytes(64)]), "public key"),
        ]
    genesis = [ALICE_XPUB, SMALL_ORDER["y = 0"], 0, group, None, b"r" * 16]
    out.append(("genesis, small-order recovery key", 1, pack(genesis), "public key"))
    for name, key in LOW_ORDER_X.items():
        out.append((f"join, exchange key {name}", 6, pack([group, key, bytes(64)]), "X25519"))
    out.append(("genesis, low exchange key", 1, pack([low, None, 0, group, None, b"r" * 16]), "X2"))
    return out


def bad_records(group, epoch):
    """Wires that decode, and what `verify` says of them: (name, wire, error class, piece)."""
    envelope, _ = data("bad", b"body", epoch[:16], group, ALICE.id, 1_700_000_000, 1)
    fields = header_fields(32, group, ALICE.id, 1, None, envelope, auth=[group])
    header, signature, _ = sign(ALICE, fields, envelope)
    s = int.from_bytes(signature[32:], "little") + L
    malleable = signature[:32] + s.to_bytes(32, "little")
    out = [
        ("S plus L", pack([header, malleable, envelope]), "AuthError", "did not sign"),
        ("signature of zeros", pack([header, bytes(64), envelope]), "AuthError", "did not sign"),
        ("Bob signs for Alice", pack([header, sign(BOB, fields, envelope)[1], envelope]),
         "AuthError", "did not sign"),
        ("signed without its domain", pack([header, ALICE.key.sign(header), envelope]),
         "AuthError", "did not sign"),
        ("signed under another domain",
         pack([header, ALICE.sign(b"covey/owner/1\0", header), envelope]),
         "AuthError", "did not sign"),
        ("another body", pack([header, signature, envelope[:-1] + b"\0"]), "BodyError", "commits"),
        ("a body cut short", pack([header, signature, envelope[:-1]]), "BodyError", "bytes"),
    ]  # fmt: skip
    # One constant signature (R the identity, S zero) verifies under small-order keys for every
    # message in libraries that load them.
    for name, key in SMALL_ORDER.items():
        forged = pack(list({**fields, "author": key}.values()))
        constant = b"\x01" + bytes(63)
        out.append((f"author {name}", pack([forged, constant, envelope]), "AuthError", "sign"))
    shapes = [
        ("a control envelope in a data record", pack([b"s" * 16, b"payload"]), 32),
        ("a data envelope in a control record", envelope, 2),
        ("ciphertext shorter than its tag", pack([b"s" * 16, b"e" * 16, b"w" * 60, b"c" * 15]), 32),
        ("a key wrap of 59 bytes", pack([b"s" * 16, b"e" * 16, b"w" * 59, b"c" * 16]), 32),
        ("a salt of 15 bytes", pack([b"s" * 15, b"payload"]), 2),
        ("an envelope with bin16", b"\x92\xc5\x00\x10" + b"s" * 16 + pack(b"p"), 2),
        ("a payload as text", pack([b"s" * 16, "payload"]), 2),
    ]
    for name, bad, kind in shapes:
        wire = sign(ALICE, header_fields(kind, group, ALICE.id, 1, None, bad, auth=[group]), bad)[2]
        out.append((name, wire, "BodyError", "envelope"))
    return out


def bad_wires(group):
    fields = header_fields(32, group, ALICE.id, 1, None, b"", auth=[group])
    header, signature, wire = sign(ALICE, fields, None)
    return [
        ("signature of 63 bytes", pack([header, signature[:63], None]), "bytes"),
        ("envelope as text", pack([header, signature, "x"]), "str"),
        ("two elements", pack([header, signature]), "length"),
        ("four elements", pack([header, signature, None, None]), "length"),
        ("array16", b"\xdc\x00\x03" + wire[1:], "smallest"),
        ("header over its limit", pack([bytes(1_025), signature, None]), "bytes"),
        ("envelope over its limit", pack([header, signature, bytes(65_793)]), "bytes"),
        ("a byte behind it", wire + b"\0", "trailing"),
        ("over its limit", wire + bytes(70_000), "at most"),
    ]


def seals(group):
    out = []
    info = b"covey/seal/1\0" + group
    owner_info = b"covey/seal-owner/1\0" + group
    for name, i, plain in (("epoch secret", info, SECRET), ("owner seed", owner_info, seed("o"))):
        ephemeral, _ = exchange("ephemeral " + name)
        sealed = hpke_seal(ephemeral, BOB_XPUB, i, plain)
        out.append(
            {
                "name": name,
                "private": seed("bob exchange").hex(),
                "ephemeral": seed("ephemeral " + name).hex(),
                "info": i.hex(),
                "plain": plain.hex(),
                "sealed": sealed.hex(),
            }
        )
    return out


def base32(raw):
    return base64.b32encode(raw).decode().rstrip("=")


def ticket_text(fields, prefix="COVEY1"):
    raw = pack(fields)
    return prefix + base32(raw + sha(raw)[:4])


def tickets(group):
    addrs = [
        bytes.fromhex("04c0a8010a060fa1"),  # /ip4/192.168.1.10/tcp/4001
        bytes.fromhex("29" + "20010db8" + "00" * 11 + "01" + "060fa1"),  # /ip6/2001:db8::1/tcp/4001
    ]
    fields = [1, group, 2, ALICE.id, INVITE_SEED, T0_MS // 1000 + 600, 1, addrs, "home"]
    bare = [1, group, 1, ALICE.id, INVITE_SEED, 0xFFFF_FFFF, 65_535, [], "Großmutters Küche"]
    good = [
        {"name": n, "fields": plainly(f), "text": ticket_text(f)}
        for n, f in (("two addresses", fields), ("no address, many uses", bare))
    ]
    text = ticket_text(fields)

    def changed(position, value):
        other = list(fields)
        other[position] = value
        return ticket_text(other)

    raw = pack(fields)
    long = raw.replace(b"\xc4\x20", b"\xc5\x00\x20", 1)
    flipped = text[:40] + ("A" if text[40] != "A" else "B") + text[41:]
    bad = [
        ("not a ticket", "hello", "not a Covey ticket"),
        ("empty", "", "not a Covey ticket"),
        ("another version", "COVEY2" + text[6:], "another version"),
        ("one character wrong", flipped, "damaged"),
        ("the end missing", text[:-1], "damaged"),
        ("the prefix alone", "COVEY1", "damaged"),
        ("not base32", "COVEY1" + "0189" + text[10:], "damaged"),
        ("spare bits set", respell(text), "damaged"),
        ("not the smallest encoding", "COVEY1" + base32(long + sha(long)[:4]), "smallest"),
        ("fields of version 2", changed(0, 2), "ticket"),
        ("role 4", changed(2, 4), "ticket"),
        ("group of 31 bytes", changed(1, group[:31]), "ticket"),
        ("an inviter of small order", changed(3, SMALL_ORDER["order 8"]), "public key"),
        ("no use", changed(6, 0), "ticket"),
        ("seven addresses", changed(7, [addrs[0]] * 7), "ticket"),
        ("an empty address", changed(7, [b""]), "ticket"),
        ("a name of 33 characters", changed(8, "n" * 33), "ticket"),
        ("a name with an escape sequence", changed(8, "\x1b[2Jhome"), "control characters"),
        ("a name that is not UTF-8", changed_name(fields, b"\xff\xfe"), "ticket"),
        ("very long", "COVEY1" + "A" * 5_000, "too long"),
    ]
    return good, bad


def changed_name(fields, name):
    raw = pack(fields[:-1])
    raw = bytes([raw[0] + 1]) + raw[1:] + bytes([0xA0 + len(name)]) + name
    return "COVEY1" + base32(raw + sha(raw)[:4])


def respell(text):
    """The same bytes with a last character whose unused bits are set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    spare = len(text[6:]) * 5 % 8
    assert spare > 0
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


def words(group):
    listed = WORDS.read_text("ascii").split()
    public = invite_key(group).public_key().public_bytes_raw()
    digest = sha(b"covey/pair/1\0", min(ALICE.id, BOB.id), max(ALICE.id, BOB.id), public)
    bits = "".join(f"{byte:08b}" for byte in digest)[:66]
    return {
        "a": ALICE.id.hex(),
        "b": BOB.id.hex(),
        "invite_public": public.hex(),
        "words": [listed[int(bits[i : i + 11], 2)] for i in range(0, 66, 11)],
    }


def build():
    """All vectors, as JSON values."""
    good, group, epoch = records()
    tickets_good, tickets_bad = tickets(group)
    return {
        "about": "Golden vectors of docs/specs/record.md and ticket.md; written by make.py.",
        "keys": {
            "secret": SECRET.hex(),
            "epoch": epoch[:16].hex(),
            "key_commit": sha(b"covey/epoch/1\0", SECRET).hex(),
            "tag_commit": sha(b"covey/tag-key/1\0", TAG_KEY).hex(),
            "seeds": {n: seed(n).hex() for n in ("alice", "bob", "owner", "recovery")},
            "exchange": {n: seed(n + " exchange").hex() for n in ("alice", "bob")},
            "invite_seed": INVITE_SEED.hex(),
        },
        "records": good,
        "bad_headers": [
            {"name": n, "header": hexed(h), "error": e} for n, h, e in bad_headers(group)
        ],
        "bad_payloads": [
            {"name": n, "kind": k, "payload": hexed(p), "error": e}
            for n, k, p, e in bad_payloads(group)
        ],
        "bad_wires": [{"name": n, "wire": hexed(w), "error": e} for n, w, e in bad_wires(group)],
        "bad_records": [
            {"name": n, "wire": w.hex(), "class": c, "error": e}
            for n, w, c, e in bad_records(group, epoch)
        ],
        "key_tags": [
            {
                "type": "lww",
                "path": pack(["notes", "x"]).hex(),
                "tag": hmac.new(TAG_KEY, b"covey/key/1\0lww\0" + pack(["notes", "x"]), "sha256")
                .digest()[:16]
                .hex(),
            }
        ],
        "seals": seals(group),
        "tickets": tickets_good,
        "bad_tickets": [{"name": n, "text": t, "error": e} for n, t, e in tickets_bad],
        "check_words": words(group),
    }


def text():
    """The file's contents."""
    return json.dumps(build(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    (HERE / "record_v1.json").write_text(text(), "ascii")
