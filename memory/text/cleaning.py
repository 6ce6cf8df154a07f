"""Text as data: cleaned, cut into chunks, counted. Pure.

Source: docs/specs/memory.md, *Text*.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

CHUNK_CHARS_MAX: Final = 500
"""Longest chunk. 1,000 lost 1.3 points of recall at 10 on BEAM; long messages score too well."""

BYTES_PER_TOKEN: Final = 3.6
"""UTF-8 bytes of a model's token, on average over English prose and code."""

# C0 and C1 without newline and tab, DEL, and lone surrogates, which no UTF-8 can carry.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAKS: Final = re.compile(r"[\n\t]+")

# Where a piece ends: after a blank line, before a list item, after a sentence. Every branch starts
# at a white-space character or fails at once, so the scan is linear in hostile text too.
_ENDS: Final = re.compile(
    r"""\n[ \t]*\n\s*                                 # blank line
      | \n(?=[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t])   # the next line is a list item
      | (?<=[.!?])\s+ | (?<=[.!?]["')\]])\s+          # end of a sentence
    """,
    re.VERBOSE,
)


def clean(text: str) -> str:
    """NFC, line feeds only, no control characters but newline and tab."""
    if text.isascii() and text.isprintable():
        return text  # nearly every field of nearly every note
    text = _CONTROL.sub("", text.replace("\r\n", "\n"))
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean_line(text: str) -> str:
    """The same for a field of one line; breaks become spaces, the ends are trimmed."""
    return _BREAKS.sub(" ", clean(text)).strip()


def tokens(text: str) -> int:
    """Estimated model tokens of a text."""
    return int(len(text.encode()) / BYTES_PER_TOKEN) + 1


def split(text: str) -> list[str]:
    """Cut a text into chunks of at most 500 characters; joined they are the text again."""
    if len(text) <= CHUNK_CHARS_MAX:
        return [text]
    chunks: list[str] = []
    current = ""
    for piece in _pieces(text):
        if current and len(current) + len(piece) > CHUNK_CHARS_MAX:
            chunks.append(current)
            current = ""
        current += piece
    chunks.append(current)
    return chunks


def _pieces(text: str) -> list[str]:
    """Pieces that end where a reader would pause, none over the limit."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    pieces = []
    start = 0
    for end in ends:
        while end - start > CHUNK_CHARS_MAX:
            space = text.rfind(" ", start + 1, start + CHUNK_CHARS_MAX)
            cut = space + 1 if space > 0 else start + CHUNK_CHARS_MAX
            pieces.append(text[start:cut])
            start = cut
        if end > start:
            pieces.append(text[start:end])
        start = end
    return pieces
