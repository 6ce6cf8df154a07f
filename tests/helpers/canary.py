"""A text that occurs nowhere else, and the search of every byte of a home for its spellings."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MARK = "Quetzalbird7Xkv93Zplynth"
"""Long enough to be nowhere by chance; letters and digits, so that every index keeps it whole."""
ACCENTED = "Ñandúvogel-Überß42"
"""What escapes spell in another way."""
TEXT = f"The {MARK} roosts behind the third gate, said the {ACCENTED} keeper"


def spellings(word: str, texts: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Forms in which a word may lie in a file.

    Args:
        word: any.
        texts: whole texts that hold it; their hashes would let somebody check a guess.
    """
    plain = word.encode()
    found = {
        "plain": plain,
        "lower": word.lower().encode(),
        "upper": word.upper().encode(),
        "utf-16": word.encode("utf-16-le"),
        "utf-16 big": word.encode("utf-16-be"),
        "utf-32": word.encode("utf-32-le"),
        "reversed": plain[::-1],
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
        "json": json.dumps(word)[1:-1].encode(),
        "zlib": zlib.compress(plain)[2:-4],
        "sql": b"X'" + plain.hex().upper().encode(),
        # FTS5 keeps of a term only what differs from the one before it.
        "end of the term": word.lower()[-10:].encode(),
    }
    for shift in range(3):
        # Base64 of a text that has the word at any place: the middle is the same whatever is near.
        encoded = base64.b64encode(bytes(shift) + plain)
        found[f"base64 +{shift}"] = encoded[4 : len(encoded) // 4 * 4 - 4]
        found[f"base64url +{shift}"] = encoded[4:-4].replace(b"+", b"-").replace(b"/", b"_")
    for text in texts:
        for spelt in (text, text.lower(), " ".join(text.casefold().split())):
            for name in ("sha256", "blake2b", "sha1", "md5"):
                digest = hashlib.new(name, spelt.encode()).digest()
                found[f"{name} of {spelt[:12]!r}"] = digest[:16]
    return {name: data for name, data in found.items() if len(data) >= 6}


def find(folder: Path, words: dict[str, bytes]) -> list[tuple[str, str]]:
    """(file, spelling) of each form that a file below the folder holds; names of files too.

    Raises:
        AssertionError: there was nothing to search.
    """
    found = []
    searched = 0
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found += [(name, f"name: {form}") for form, data in words.items() if data in name.encode()]
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue  # went while we looked
        searched += len(content)
        found += [(name, form) for form, data in words.items() if data in content]
    assert searched > 100_000, f"nothing to search below {folder}"
    return found
