"""Foreign text made harmless to show: to a terminal, to a person, to a language model.

A memory's text was written by somebody, often on another machine. Before it leaves the daemon for
an agent or a terminal, everything goes that a reader does not see but a terminal or a model obeys:
control characters, terminal escape sequences, direction overrides, invisible characters (which can
carry a whole hidden sentence), and the `<|` that opens control tokens of many models. What a reader
sees stays as it was written. Source: docs/specs/mcp.md s.6.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from daemon.json_types import Json

LINE_CHARS_MAX: Final = 200
"""Cap of a single-line field, in characters: guess, long enough for titles and URIs."""

NAME_CHARS_MAX: Final = 64
"""Cap of a shown name, in characters: the longest name a record may carry (daemon.md 5)."""

# ECMA-48 s.5.4 (CSI), s.5.6 (strings). A string sequence without its end is only stripped of its
# introducer, so that an attacker cannot make the rest of a text vanish. Each alternative begins
# with an introducer and stops at the next one: time is linear in the text.
_ANSI: Final = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\x9d\x90\x98\x9e\x9f]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]+[0-~]"
    "|\x1b[0-Z\\\\^-~]"
)

# Unicode 16: C0 and C1 but tab and line feed; bidirectional controls (UAX 9) with the Arabic letter
# mark; zero-width space and its kin; the deprecated format characters; interlinear annotation; the
# byte order mark; tags and supplementary variation selectors, which encode ASCII invisibly; lone
# surrogates, which no UTF-8 encoder takes. Joiners (200C, 200D) stay: scripts and emoji need them.
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)

_SPACES: Final = re.compile("[\\s\u2028\u2029\x85]+")
_NOT_NAME: Final = re.compile(r"[^\w.~+-]+")


def sanitise(text: str) -> str:
    """Strip what is not seen but obeyed from a text of any length.

    Args:
        text: foreign text.

    Returns:
        The text without control, escape, direction and invisible characters, `<|` broken as `< |`.
        A second pass changes nothing.
    """
    if text.isascii() and text.isprintable() and "<|" not in text:
        return text  # nearly every id, name and date
    # Invisible characters go before `<|` is looked for: one between the two would hide it.
    text = _ANSI.sub("", text.replace("\r\n", "\n"))
    return _INVISIBLE.sub("", text).replace("<|", "< |")


def sanitise_line(text: str, *, chars_max: int = LINE_CHARS_MAX) -> str:
    """Sanitise a field that is shown on one line.

    Args:
        text: foreign text.
        chars_max: longer text is cut and ends in an ellipsis.

    Returns:
        One line without any line separator, trimmed.
    """
    # Unicode's line separators survive `sanitise`; on a shared line they would open a forged one.
    line = _SPACES.sub(" ", sanitise(text)).strip()
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def sanitise_name(text: str, *, chars_max: int = NAME_CHARS_MAX) -> str:
    """Sanitise a name that is shown outside of any quotation, beside our own words.

    Args:
        text: an agent's, device's or group's name as its owner wrote it.
        chars_max: longer names are cut.

    Returns:
        Letters, digits and `._~+-` of any script, everything else (spaces too) as `_`: no name can
        imitate the words and numbers printed next to it. An empty name becomes `?`.
    """
    return _NOT_NAME.sub("_", sanitise(text))[:chars_max].strip("_") or "?"


def sanitise_tree(value: Json) -> Json:
    """Sanitise every string of a decoded JSON value, keys too.

    Args:
        value: built from our own typed structs, so its depth is theirs and bounded.

    Returns:
        A copy.
    """
    if isinstance(value, str):
        return sanitise(value)
    if isinstance(value, (list, tuple)):
        return [sanitise_tree(item) for item in value]
    if isinstance(value, dict):
        return {sanitise(key): sanitise_tree(item) for key, item in value.items()}
    return value
