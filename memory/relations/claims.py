"""Statements with a key: the value of an attribute of a subject. Pure.

A claim is given with a note, or guessed from sentences such as `retries = 5` or "the staging port
is 5433". A given one has force: the same key and owner with another value is replaced by the newer
one, another owner's contradicts it. A guessed one only proposes: whoever writes is told what looks
like the same statement with another value. Source: docs/specs/memory.md, *Claims and conflicts*.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GUESSES_MAX: Final = 4
"""Statements guessed from one text."""

GUESS_CHARS_MAX: Final = 2_000
"""How much of a text is looked at: what is longer is a document, not a statement."""

VOICES_MAX: Final = 16
"""Representatives of a key that are compared with each other: at most 120 disputes a key."""

# Tokens are bounded, so that hostile text costs no more than prose.
_NAME: Final = r"[A-Za-z_][\w./-]{1,63}"
_VALUE: Final = r"[\"'`]?([^\s\"'`,;]{1,64})"
_ASSIGNED: Final = re.compile(rf"(?<![\w./-])({_NAME})[ \t]*(?:=|->)[ \t]*{_VALUE}")
# A colon also ends half a sentence: only a lone name at the start of a line or of an item counts.
_COLON: Final = re.compile(rf"(?:^|[\n,;])[ \t]*(?:[-*][ \t]+)?({_NAME}):[ \t]+{_VALUE}")
_SET_TO: Final = re.compile(
    rf"(?<![\w./-])({_NAME})[ \t]+(?:(?:is|was)[ \t]+)?set to[ \t]+{_VALUE}"
)
_STATED: Final = re.compile(rf"[ \t](?:is|are)[ \t]+(?:now[ \t]+)?(?:set to[ \t]+)?{_VALUE}")
# What stands before: the last article and what follows it, as one name.
_SUBJECT: Final = re.compile(
    r"(?:^|.*[^\w])(?:the|our|my)[ \t]+([\w./-]+(?:[ \t]+[\w./-]+){0,6})", re.IGNORECASE | re.DOTALL
)
SUBJECT_CHARS_MAX: Final = 120
"""How far back a subject may begin."""

_ENDS: Final = ".:!?)]}>"

# No name of anything, or no value: "note: ...", "the plan is to ...".
_NO_NAME_WORDS: Final = (
    "note notes todo fixme warning hint tip example correction update summary remember "
    "http https reason problem idea question answer result fact important"
)
_NO_NAME: Final = frozenset(_NO_NAME_WORDS.split())
_NO_VALUE_WORDS: Final = (
    "a an the to of in on at for from with by as not no now set it that this what where "
    "when why how who very so too also only still already being been going done"
)
_NO_VALUE: Final = frozenset(_NO_VALUE_WORDS.split())


class Guess(NamedTuple):
    """A statement guessed from a text, as numbers: nothing of the text is in them.

    Attributes:
        key: 64 bits of the subject.
        value: 64 bits of the value.
    """

    key: int
    value: int


class Side(NamedTuple):
    """A memory that makes a claim, as far as a fold needs it.

    Attributes:
        memory: its row.
        owner: whose word it is.
        value: its `value_key`.
        rank: `rank` of author and role.
    """

    memory: int
    owner: bytes
    value: int
    rank: int


def rank(agent: str, role: str) -> int:
    """Whose word replaces whose within one owner: the person 2, its agents 1, passed-on text 0.

    Args:
        agent: signed agent name, empty for the person.
        role: of the note; tool and web only pass on what others wrote.
    """
    if role in ("tool", "web"):
        return 0
    return 1 if agent else 2


def key_part(text: str) -> str:
    """A subject or an attribute as a key: case and spacing do not count."""
    return " ".join(text.casefold().split())


def value_key(value: str) -> int:
    """64 bits of a value; equal where the values are, but for case and spacing."""
    return _number("value", key_part(value))


def disputes(sides: Sequence[Side]) -> list[tuple[int, int]]:
    """Pairs (a < b) of memories that contradict each other, of one key.

    A value needs one voice an owner and rank, the first given: a flood of equal notes of one owner
    makes no more disputes than one of them. Two of one owner that both stand are of different rank:
    the newer one may not replace what weighs more.

    Args:
        sides: those that stand (not replaced, withdrawn or barred), the weightiest first.
    """
    heard: dict[tuple[bytes, int, int], Side] = {}
    for side in sides:
        heard.setdefault((side.owner, side.value, side.rank), side)
    voices = list(heard.values())[:VOICES_MAX]
    return sorted(
        (min(a.memory, b.memory), max(a.memory, b.memory))
        for at, a in enumerate(voices)
        for b in voices[at + 1 :]
        if a.value != b.value
    )


# ---- guessing


def guess(text: str) -> list[Guess]:
    """Statements that a text seems to make, at most four, none twice."""
    if len(text) > GUESS_CHARS_MAX:
        return []
    found: dict[int, Guess] = {}
    for name, value in _statements(text):
        key = _number("key", name)
        found.setdefault(key, Guess(key, _number("value", value)))
        if len(found) == GUESSES_MAX:
            break
    return list(found.values())


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """(subject, value) in normal form."""
    for name, value in _found(text):
        subject = key_part(name)
        stated = key_part(value.rstrip(_ENDS))
        if stated and stated not in _NO_VALUE and subject not in _NO_NAME:
            yield subject, stated


def _found(text: str) -> Iterator[tuple[str, str]]:
    if "=" in text or "->" in text:
        yield from _ASSIGNED.findall(text)
    if ": " in text:
        yield from _COLON.findall(text)
    if " set to " in text:
        yield from _SET_TO.findall(text)
    if " is " in text or " are " in text:
        for stated in _STATED.finditer(text):
            before = _SUBJECT.fullmatch(
                text, max(0, stated.start() - SUBJECT_CHARS_MAX), stated.start()
            )
            if before is not None:
                yield before[1], stated[1]


def _number(what: str, text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=what.encode()).digest()
    return int.from_bytes(digest, "big", signed=True)
