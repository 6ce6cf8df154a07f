"""The needle corpus: seeded short notes of which exactly one answers each question.

`{name} {verb} the {object} in project {code} to value {1..9999} {reason}.`, 20 topics of 5 objects,
20 names, 10 verbs, 8 reasons; `code` is three consonant-vowel syllables and two digits. An even
query is `{object} project {code}`, an odd one `what did {name} do about {object} for {code}?`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

OBJECTS = tuple(
    f"{thing} {part}"
    for thing in (
        "token", "index", "runner", "dialog", "socket", "volume", "tensor", "manual", "invoice",
        "beacon", "ranker", "sandbox", "column", "calendar", "cluster", "cache", "locale",
        "licence", "sprite", "sensor",
    )
    for part in ("rotation", "budget", "migration", "checklist", "timeout")
)  # fmt: skip
NAMES = (
    "Ada", "Bela", "Cora", "Dario", "Edda", "Femi", "Greta", "Hugo", "Ines", "Jonas",
    "Kaya", "Luca", "Mina", "Nils", "Oona", "Pavel", "Rhea", "Samir", "Tove", "Yara",
)  # fmt: skip
VERBS = (
    "moved", "renamed", "disabled", "doubled", "replaced", "documented", "profiled", "pinned",
    "reverted", "approved",
)  # fmt: skip
REASONS = (
    "because the staging run failed",
    "after the incident on Tuesday",
    "so that the reviewer agrees",
    "since the old value was too small",
    "before the quarterly freeze",
    "to let the nightly job finish",
    "as the customer asked",
    "until the new hardware arrives",
)


@dataclass(frozen=True)
class Needle:
    """A note and what identifies it."""

    name: str
    thing: str
    code: str
    text: str


def corpus(count: int, seed: int = 7) -> list[Needle]:
    """`count` notes, the same for the same seed."""
    rng = random.Random(seed)
    notes = []
    for _ in range(count):
        syllables = (rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(3))
        code = "".join(syllables) + str(rng.randint(10, 99))
        name, thing = rng.choice(NAMES), rng.choice(OBJECTS)
        text = (
            f"{name} {rng.choice(VERBS)} the {thing} in project {code} "
            f"to value {rng.randint(1, 9999)} {rng.choice(REASONS)}."
        )
        notes.append(Needle(name, thing, code, text))
    return notes


def queries(notes: list[Needle], count: int, seed: int = 11) -> list[tuple[str, str]]:
    """Questions, each with the text of the one note that answers it."""
    rng = random.Random(seed)
    asked = []
    for number in range(count):
        note = rng.choice(notes)
        asked.append(
            (f"{note.thing} project {note.code}", note.text)
            if number % 2 == 0
            else (f"what did {note.name} do about {note.thing} for {note.code}?", note.text)
        )
    return asked
