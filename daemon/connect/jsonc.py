"""Edits JSON with comments as a person would: one entry, and every other byte as it was.

Clients keep their servers in files that people edit by hand, so a file must not be decoded and
written anew. This reads a text into a tree of spans, puts one value in or takes one out, and copies
the rest. It reads what VS Code, Cursor, Zed and Gemini read: `//` and `/* */` comments, trailing
commas, any line ends and indentation, a byte order mark. It does not read JSON5 (single quotes,
bare keys): such a file is left to its owner.

Pure and without recursion: nesting is bounded. The callers parse the result again and compare
values before anything is written. Source: daemon.md 7; the grammar of RFC 8259.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.json_types import Json

DEPTH_MAX: Final = 100
"""Deeper files are refused: guess, the deepest settings seen have 12 levels."""

BOM: Final = "\ufeff"

# Possessive, so that a string without an end (or with a bare backslash) is seen to be none at once:
# tried again from each of its characters, 40 of them took hours.
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    | (?P<comment>//[^\r\n]*|/\*.*?\*/)
    | (?P<string>"(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4})*+")
    | (?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<word>true|false|null)
    | (?P<mark>[{}\[\]:,])""",
    re.VERBOSE | re.DOTALL,
)
_TRIVIA: Final = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_INDENT: Final = re.compile(r"[ \t]*")
_SAME_LINE: Final = re.compile(r"[ \t]*(//[^\r\n]*|/\*[^\r\n]*?\*/)")

Step: TypeAlias = Literal["value", "element", "colon", "next", "end"]
"""What may come: a value; an element or the end of its container (after `{`, `[` and `,`)."""


class JsoncError(Exception):
    """The text is no JSON with comments; says where."""

    def __init__(self, text: str, at: int, reason: str) -> None:
        line = text.count("\n", 0, at) + 1
        super().__init__(f"line {line}: {reason}")


class ShapeError(Exception):
    """The text is JSON, but not of the shape that the entry needs; says why."""


class Value:
    """A value and where it stands.

    Attributes:
        start: index of its first character.
        end: index behind its last one.
        kind: `object`, `array` or `scalar`.
        keys: of an object: its keys, one for each of `items`.
        key_starts: of an object: where each key begins.
        items: values inside.
    """

    __slots__ = ("end", "items", "key_starts", "keys", "kind", "start")

    def __init__(self, start: int, kind: Literal["object", "array", "scalar"]) -> None:
        self.start = start
        self.end = start
        self.kind = kind
        self.keys: list[str] = []
        self.key_starts: list[int] = []
        self.items: list[Value] = []

    def begin_of(self, index: int) -> int:
        """Where the `index`-th element begins, its key included."""
        return self.key_starts[index] if self.kind == "object" else self.items[index].start


# An edit asks the text before and after it several times each.
@lru_cache(maxsize=2)
def parse(text: str) -> Value:
    """Read a text. Nobody changes the values: they are shared.

    Raises:
        JsoncError: it is none; also when it is empty.
    """
    stack: list[Value] = []
    root: Value | None = None
    step: Step = "value"
    for kind, start, end in _tokens(text):
        word = text[start:end]
        top = stack[-1] if stack else None
        in_object = top is not None and top.kind == "object"
        if top is not None and _closes(word, top, step):
            top.end = end
            stack.pop()
            step = "next" if stack else "end"
        elif step == "element" and in_object and kind == "string" and top is not None:
            top.keys.append(_string(text, start, end))
            top.key_starts.append(start)
            step = "colon"
        elif step == "value" or (step == "element" and not in_object):
            value = _begin(text, kind, start, end)
            if top is None:
                root = value
            else:
                top.items.append(value)
            if value.kind == "scalar":
                step = "next" if stack else "end"
            else:
                if len(stack) == DEPTH_MAX:
                    raise JsoncError(text, start, "it is nested too deep")
                stack.append(value)
                step = "element"
        elif step == "colon" and word == ":":
            step = "value"
        elif step == "next" and word == ",":
            step = "element"
        else:
            raise JsoncError(text, start, f"{word[:20]!r} is not expected here")
    if root is None or stack:
        raise JsoncError(text, len(text), "it is empty" if root is None else "it ends too early")
    return root


def _closes(word: str, top: Value, step: Step) -> bool:
    return word == ("}" if top.kind == "object" else "]") and step in {"element", "next"}


def _begin(text: str, kind: str, start: int, end: int) -> Value:
    word = text[start:end]
    if word == "{":
        return Value(start, "object")
    if word == "[":
        return Value(start, "array")
    if kind == "mark":
        raise JsoncError(text, start, f"{word!r} is not expected here")
    value = Value(start, "scalar")
    value.end = end
    return value


def _string(text: str, start: int, end: int) -> str:
    word = text[start:end]
    # Without an escape it stands for itself: most do, and files are large.
    return word[1:-1] if "\\" not in word else str(json.loads(word))


def _tokens(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of all that is neither space nor comment."""
    found: list[tuple[str, int, int]] = []
    at = len(BOM) if text.startswith(BOM) else 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise JsoncError(text, at, f"{text[at : at + 20]!r} is not JSON")
        at = match.end()
        kind = str(match.lastgroup)
        if kind not in {"space", "comment"}:
            found.append((kind, match.start(), at))
    return found


def decode(text: str, value: Value | None = None) -> Json:
    """The value as JSON decodes it; of two equal keys the last one counts.

    Args:
        text: the whole text.
        value: which part; default all of it.

    Raises:
        JsoncError: the text is none.
    """
    value = parse(text) if value is None else value
    if value.kind == "array":
        # As deep as DEPTH_MAX at most.
        return [decode(text, item) for item in value.items]
    if value.kind == "object":
        return {key: decode(text, item) for key, item in zip(value.keys, value.items, strict=True)}
    if text[value.start] == '"':
        return _string(text, value.start, value.end)
    try:
        decoded: Json = json.loads(text[value.start : value.end])
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise JsoncError(text, value.start, "it holds a number that is too long") from None
    return decoded


def is_blank(text: str) -> bool:
    """Whether the text holds nothing but space and comments."""
    start = len(BOM) if text.startswith(BOM) else 0
    found = _TRIVIA.match(text, start)
    return found is not None and found.end() == len(text)


def get(text: str, path: Sequence[str]) -> Json:
    """The value at `path`; None where nothing stands.

    Raises:
        JsoncError: the text is none.
        ShapeError: something on the way is no object, or stands there twice.
    """
    if is_blank(text):
        return None
    here, missing = _walk(parse(text), path)
    return None if missing else decode(text, here[-1])


def depth_of(text: str, path: Sequence[str]) -> int:
    """How many steps of `path` are there already.

    Raises:
        JsoncError, ShapeError: as `get`.
    """
    if is_blank(text):
        return 0
    _, missing = _walk(parse(text), path)
    return len(path) - len(missing)


def put(text: str, path: Sequence[str], value: Json) -> str:
    """Set the value at `path`, making the objects on the way; equal values change nothing.

    Raises:
        JsoncError: the text is none.
        ShapeError: something on the way is no object, or stands there twice.
    """
    if is_blank(text):
        return _fill_blank(text, path, value)
    root = parse(text)
    here, missing = _walk(root, path)
    unit = _unit(text, root)
    if not missing:
        old = here[-1]
        if decode(text, old) == value:
            return text
        lines = _render(text, value, unit, _indent_at(text, here[-2].begin_of(_place(here))))
        return text[: old.start] + lines + text[old.end :]
    return _append(text, here[-1], missing[0], _nest(missing[1:], value), unit)


def append(text: str, path: Sequence[str], value: Json) -> str:
    """Add an element at the end of the array at `path`, making what is missing.

    Raises:
        JsoncError: the text is none.
        ShapeError: as `put`, or there is something else than an array.
    """
    if is_blank(text) or depth_of(text, path) < len(path):
        return put(text, path, [value])
    root = parse(text)
    array = _walk(root, path)[0][-1]
    if array.kind != "array":
        raise ShapeError(f"{'.'.join(path)} is no list")
    return _append(text, array, None, value, _unit(text, root))


def put_item(text: str, path: Sequence[str], index: int, value: Json) -> str:
    """Replace an element of the array at `path`; see `append` for errors."""
    root = parse(text)
    array = _walk(root, path)[0][-1]
    old = array.items[index]
    lines = _render(text, value, _unit(text, root), _indent_at(text, old.start))
    return text[: old.start] + lines + text[old.end :]


def remove(text: str, path: Sequence[str], *, keep: int) -> str:
    """Take out the value at `path`, and the objects around it that are empty then.

    Args:
        text: the whole text.
        path: of the value; nothing happens where none stands.
        keep: so many steps of the path stay even when empty: they were there before us.

    Raises:
        JsoncError, ShapeError: as `get`.
    """
    if is_blank(text):
        return text
    here, missing = _walk(parse(text), path)
    if missing:
        return text
    level = len(path) - 1
    while level > keep and len(here[level].items) == 1:
        level -= 1
    container = here[level]
    return _cut(text, container, container.keys.index(path[level]))


def remove_item(text: str, path: Sequence[str], index: int, *, keep: int) -> str:
    """Take an element out of the array at `path`; an array left empty goes too, see `remove`."""
    array = _walk(parse(text), path)[0][-1]
    if len(array.items) == 1 and keep < len(path):
        return remove(text, path, keep=keep)
    return _cut(text, array, index)


def _walk(root: Value, path: Sequence[str]) -> tuple[list[Value], list[str]]:
    """The values from the root along `path` as far as they go, and the steps that are not there."""
    here = [root]
    for number, key in enumerate(path):
        value = here[-1]
        if value.kind != "object":
            raise ShapeError(f"{'.'.join(path[:number]) or 'the file'} is no object")
        if value.keys.count(key) > 1:
            raise ShapeError(f"{'.'.join(path[: number + 1])} stands there twice")
        if key not in value.keys:
            return here, list(path[number:])
        here.append(value.items[value.keys.index(key)])
    return here, []


def _place(here: Sequence[Value]) -> int:
    return here[-2].items.index(here[-1])


def _nest(steps: Sequence[str], value: Json) -> Json:
    for key in reversed(steps):
        value = {key: value}
    return value


def _newline(text: str) -> str:
    at = text.find("\n")
    return "\r\n" if at > 0 and text[at - 1] == "\r" else "\n"


def _line_starts(text: str) -> list[int]:
    """Where each line begins, its byte order mark left out."""
    first = len(BOM) if text.startswith(BOM) else 0
    return [first, *(match.end() for match in _LINE_END.finditer(text))]


def _indent_at(text: str, at: int, starts: Sequence[int] | None = None) -> str:
    """The white space that begins the line of `at`.

    Args:
        text: the whole text.
        at: an index in it, not before its byte order mark.
        starts: `_line_starts` of the text, for callers that ask often.
    """
    starts = _line_starts(text) if starts is None else starts
    found = _INDENT.match(text, starts[bisect_right(starts, at) - 1], at)
    assert found is not None  # it matches nothing, too
    return found.group()


def _unit(text: str, root: Value) -> str:
    """One step of indentation, as the first indented element shows it; else two spaces."""
    # Agents keep megabytes in one file, some of them in one line: no look back from each element.
    starts = _line_starts(text)
    waiting = deque([root])
    while waiting:
        value = waiting.popleft()
        outer = _indent_at(text, value.start, starts)
        for index in range(len(value.items)):
            inner = _indent_at(text, value.begin_of(index), starts)
            if len(inner) > len(outer) and inner.startswith(outer):
                return inner[len(outer) :]
        waiting += value.items
    return "  "


def _render(text: str, value: Json, unit: str, indent: str) -> str:
    lines = json.dumps(value, indent=unit, ensure_ascii=False).split("\n")
    return (_newline(text) + indent).join(lines)


def _fill_blank(text: str, path: Sequence[str], value: Json) -> str:
    newline = _newline(text)
    body = newline.join(json.dumps(_nest(path, value), indent=2, ensure_ascii=False).split("\n"))
    head = text.rstrip(" \t\r\n")
    gap = newline if head.removeprefix(BOM) else ""
    return f"{head}{gap}{body}{newline}"


def _append(text: str, container: Value, key: str | None, value: Json, unit: str) -> str:
    """Put an element behind the last one, in the manner of its neighbours."""
    if container.kind == "scalar" or (container.kind == "object") != (key is not None):
        raise ShapeError("the file holds another kind of value where the entry belongs")
    head = "" if key is None else json.dumps(key, ensure_ascii=False) + ": "
    newline = _newline(text)
    outer = _indent_at(text, container.start)
    if not container.items:
        # Comments inside of an empty container stay where they are.
        inside = text[container.start + 1 : container.end - 1].rstrip(" \t\r\n")
        body = head + _render(text, value, unit, outer + unit)
        filled = f"{inside}{newline}{outer}{unit}{body}{newline}{outer}"
        return text[: container.start + 1] + filled + text[container.end - 1 :]
    last = len(container.items) - 1
    begin, end = container.begin_of(last), container.items[last].end
    comma = _comma_after(text, end)
    at = end if comma < 0 else comma + 1
    after = at
    while (comment := _SAME_LINE.match(text, after)) is not None:
        after = comment.end()
    on_one_line = "\n" not in text[container.start : end] and "//" not in text[at:after]
    if on_one_line:
        body = " " + head + json.dumps(value, ensure_ascii=False)
    else:
        indent = _indent_at(text, begin)
        first_on_line = text[:begin].rstrip(" \t").endswith(("\n", "\r"))
        inner = indent if first_on_line else outer + unit
        body = newline + inner + head + _render(text, value, unit, inner)
    separator, trailing = ("", ",") if comma >= 0 else (",", "")
    return text[:end] + separator + text[end:after] + body + trailing + text[after:]


def _comma_after(text: str, at: int) -> int:
    """Index of the comma that follows a value, -1 if none does."""
    found = _TRIVIA.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end() if text[found.end() : found.end() + 1] == "," else -1


def _cut(text: str, container: Value, index: int) -> str:
    """Take an element out, with its comma and the white space before it."""
    begin, end = container.begin_of(index), container.items[index].end
    comma = _comma_after(text, end)
    if comma >= 0:
        rest = text[end:comma] + text[comma + 1 :]
        return text[: _cut_from(text, container, index, rest)] + rest
    rest = text[end:]
    lead = _cut_from(text, container, index, rest)
    if index:
        # The last of several: the comma before it separates nothing any more.
        before = _comma_after(text, container.items[index - 1].end)
        return text[:before] + text[before + 1 : lead] + rest
    if not (text[container.start + 1 : begin] + text[end : container.end - 1]).strip():
        return text[: container.start + 1] + text[container.end - 1 :]
    return text[:lead] + rest


def _cut_from(text: str, container: Value, index: int, rest: str) -> int:
    """Where a cut begins: with the white space, unless a line comment would swallow `rest`."""
    begin = container.begin_of(index)
    lead = len(text[:begin].rstrip(" \t\r\n"))
    previous = container.items[index - 1].end if index else container.start + 1
    line = text[max(previous, text.rfind("\n", 0, lead) + 1) : lead]
    ends_line = rest.lstrip(" \t").startswith(("\n", "\r"))
    return begin if "//" in line and not ends_line else lead
