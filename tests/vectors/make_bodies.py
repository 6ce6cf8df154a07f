"""Writes body_v1.json: golden vectors of the bodies of entry records.

Shares no code with Covey, only docs/specs/memory.md: another MessagePack library, the same bytes.
Run it from the repository root; a test checks that the file it writes is the one committed.
"""

import json
from pathlib import Path

import msgpack

HERE = Path(__file__).parent
ID_A, ID_B = bytes(range(32)), bytes(range(32, 64))
T0_MS = 1_700_000_000_000


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


def note(**changes):
    fields = {
        "agent": "claude",
        "scope": "main",
        "kind": "note",
        "role": "agent",
        "speaker": None,
        "text": "The build needs node 22.",
        "title": None,
        "thread": None,
        "pos": 1,
        "at_ms": T0_MS,
        "valid_from": None,
        "valid_to": None,
        "tags": [],
        "claim": None,
        "source": None,
        "derived_from": [],
        "ttl_s": None,
        "idem": None,
    }
    unknown = changes.keys() - fields.keys()
    assert not unknown, unknown
    return [1, *{**fields, **changes}.values()]


GOOD = {
    "the smallest note": note(),
    "a note with every field": note(
        agent="",
        scope="a.b_c-9",
        kind="claim",
        role="owner",
        speaker="Ada",
        text="gr\u00fc\u00dfe \U0001f600\nline two",
        title="T",
        thread="talk",
        pos=70_000,
        at_ms=-1,
        valid_from=T0_MS,
        valid_to=253_402_300_799_999,
        tags=["x", "y"],
        claim=["proxy", "port", "8080"],
        source=["file:a.md", "covey import", ID_A],
        derived_from=[ID_A, ID_B],
        ttl_s=3600,
        idem="k1",
    ),
    "a source with one part": note(source=[None, "curl", None]),
    "a text of 256 characters": note(text="x" * 256),
    "a link": [2, "claude", ID_A, ID_B, "supersedes", None],
    "a link with a note": [2, "", ID_A, ID_B, "contradicts", "see log"],
    "a verdict": [3, "claude", ID_A, "harmful", "evidence", ID_B, "broke the build"],
    "an endorsement": [4, "", ID_A, 100, T0_MS],
    "a distrust": [4, "", ID_A, 0, None],
    "a forget": [5, "claude", [ID_A, ID_B], "no longer true"],
    "a profile": [6, "", "laptop"],
}

PLAIN = pack(note())
BAD = {
    "nothing": b"",
    "not an array": pack({"tag": 1}),
    "a map in place of the tag": pack([{}, "a"]),
    "tag 0": pack([0, "a"]),
    "a newer tag": pack([7, "a", 1, 2]),
    "a missing field": pack(note()[:-1]),
    "a field too many": pack([*note(), None]),
    "trailing bytes": PLAIN + b"\xc0",
    "a truncated body": PLAIN[:-1],
    "array16 where a fixarray is enough": b"\xdc\x00\x03" + pack([6, "", "a"])[1:],
    "a long integer for a small one": PLAIN[:1] + b"\xcc\x01" + PLAIN[2:],
    "str8 where a fixstr is enough": PLAIN.replace(b"\xa6claude", b"\xd9\x06claude"),
    "binary in place of text": pack(note(text=b"bytes")),
    "text in place of an id": pack([2, "a", "x" * 32, ID_B, "supersedes", None]),
    "an id of 31 bytes": pack([2, "a", ID_A[:31], ID_B, "supersedes", None]),
    "a true in place of a number": pack(note(pos=True)),
    "a float": pack(note(pos=1.0)),
    "bad UTF-8": PLAIN.replace(b"\xa6claude", b"\xa6claud\xff"),
    "an unknown kind": pack(note(kind="rumour")),
    "an unknown role": pack(note(role="root")),
    "an unknown link": pack([2, "a", ID_A, ID_B, "erases", None]),
    "an unknown outcome": pack([3, "a", ID_A, "great", "owner", None, None]),
    "an upper-case scope": pack(note(scope="Main")),
    "a scope with a slash": pack(note(scope="a/b")),
    "an empty scope": pack(note(scope="")),
    "a long agent": pack(note(agent="a" * 65)),
    "33 tags": pack(note(tags=[str(n) for n in range(33)])),
    "an empty tag": pack(note(tags=[""])),
    "17 parents": pack(note(derived_from=[ID_A] * 17)),
    "a date after the year 9999": pack(note(at_ms=253_402_300_800_000)),
    "a negative place": pack(note(pos=-1)),
    "a level of 101": pack([4, "", ID_A, 101, None]),
    "no target": pack([5, "a", [], None]),
    "257 targets": pack([5, "a", [ID_A] * 257, None]),
    "a profile without a name": pack([6, "", ""]),
    "over 64 KiB": pack(note(text="x" * 65_536)),
}


def shown(value):
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return value


def make():
    # The oversized one is described, not spelled out: 130 kB of hex tell nobody anything.
    bad = [
        {"name": name, "hex": data.hex()} if len(data) < 10_000 else {"name": name, "x": 65_536}
        for name, data in BAD.items()
    ]
    good = [
        {"name": name, "hex": pack(value).hex(), "value": shown(value)}
        for name, value in GOOD.items()
    ]
    return json.dumps({"version": 1, "good": good, "bad": bad}, indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "body_v1.json").write_text(make())
