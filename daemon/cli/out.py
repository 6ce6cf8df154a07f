"""What the command line prints: plain text, a little colour on a terminal, JSON when asked.

Results go to standard output, everything else to standard error. Foreign text loses what a terminal
would obey before it is printed.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.json_types import Json

# Escape sequences, direction overrides, invisible characters: what daemon.sanitise takes from text
# for models, as one translation table (its regular expressions cost this process 10 ms).
_DROP = dict.fromkeys(
    [c for c in range(0x20) if c not in {0x09, 0x0A}]
    + list(range(0x7F, 0xA0))
    + [0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0xFEFF, 0x2028, 0x2029]
    + list(range(0x202A, 0x202F))
    + list(range(0x2060, 0x2070))
    + list(range(0xD800, 0xE000))
    + list(range(0xFFF9, 0xFFFC))
    + list(range(0xE0000, 0xE0080))
    + list(range(0xE0100, 0xE01F0))
)

BOLD, DIM, GREEN, YELLOW, RED, CYAN = "1", "2", "32", "33", "31", "36"


def clean(text: str) -> str:
    """Text without characters that a terminal obeys or a reader cannot see."""
    return text.translate(_DROP)


def one_line(text: str, width: int) -> str:
    """The text on one line, cut at `width` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def coloured(stream_is_tty: bool) -> bool:
    """Whether to colour: a terminal, and nobody said no (https://no-color.org)."""
    return stream_is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


_COLOUR = coloured(sys.stdout.isatty()) if sys.stdout else False


def paint(text: str, *codes: str) -> str:
    """Text in colour, where colours are shown."""
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if _COLOUR and text else text


def columns(text: str) -> int:
    """Columns of a terminal that the text takes: two for wide characters, none for accents."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(c) in {"Mn", "Me", "Cf"} else 2 if east_asian_width(c) in {"W", "F"} else 1
        for c in text
    )


def width(stream: int = 1) -> int:
    """Columns of the terminal behind a descriptor, at least 40; 100 when there is none."""
    try:
        return max(40, os.get_terminal_size(stream).columns)
    except OSError:
        return 100


def say(text: str = "") -> None:
    """Print a line of the result."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print a line beside the result."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")


def say_json(value: Json) -> None:
    """Print the result as JSON."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def mapping(value: Json) -> dict[str, Json]:
    """The value if it is an object, else an empty one: answers are foreign to the printer."""
    return value if isinstance(value, dict) else {}


def rows(value: Json) -> list[dict[str, Json]]:
    """The objects of an array."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Json) -> str:
    """The value as clean text; empty for None."""
    return "" if value is None else clean(str(value))


def number(value: Json) -> float:
    """The value as a number, 0 if it is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print columns, as wide as their widest cell."""
    if not lines:
        return
    widths = [max(columns(line[i]) for line in (head, *lines)) for i in range(len(head))]
    say(paint("  ".join(_padded(head, widths)), DIM))
    for line in lines:
        say("  ".join(_padded(line, widths)).rstrip())


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell + " " * (size - columns(cell)) for cell, size in zip(line, widths, strict=True)]


def ago(at_ms: float, now_ms: float | None = None) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `2 d ago`; `never` for 0."""
    if not at_ms:
        return "never"
    now = time.time_ns() / 1e6 if now_ms is None else now_ms
    seconds = max(0.0, (now - at_ms) / 1000)
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if seconds < limit:
            return "just now" if seconds < 5 else f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} d ago"


def span(seconds: float) -> str:
    """A duration in its largest sensible unit."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def size(count: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def trust(value: float) -> str:
    """Trust as `.91`, green from .8, yellow from .5, red below."""
    shown = "1.0" if value >= 0.995 else f"{value:.2f}".lstrip("0") or ".00"
    return paint(shown, GREEN if value >= 0.8 else YELLOW if value >= 0.5 else RED)


def confirm(question: str, *, yes: bool) -> bool:
    """Ask a yes-or-no question on the terminal; `yes` answers it beforehand."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
