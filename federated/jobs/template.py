"""Templates: `{{column}}` is replaced by the row's cell, in one pass.

There is nothing else: no conditions, no nesting, and what a cell holds is never read again, so a
cell that says `{{secret}}` stays those ten characters. Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from federated.errors import PlanError
from federated.jobs.canon import canonical
from federated.jobs.limits import COLUMNS_MAX, FILLED_CHARACTERS_MAX, TEMPLATE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Collection

    from federated.jobs.types import Row

# What is between the braces is stripped afterwards: leaving spaces out in the expression itself
# costs time that grows with the square of a hostile text.
_FIELD: Final = re.compile(r"(\{\{[^{}]+\}\})")
NAME_CHARACTERS_MAX: Final = 128


class Template:
    """A parsed template.

    Attributes:
        names: columns it needs.
    """

    __slots__ = ("_parts", "names")

    def __init__(self, parts: list[str]) -> None:
        # Literal text at even places, names at odd ones.
        self._parts = parts
        self.names = frozenset(parts[1::2])

    def render(self, row: Row) -> str:
        """The text for a row; a cell that is no text as canonical JSON, an absent one empty.

        Raises:
            PlanError: `too_large`, where cells named often become more than is wanted; `bad_value`
                for a cell without canonical form.
        """
        out = []
        size = 0
        for i, part in enumerate(self._parts):
            text = part if i % 2 == 0 else _text(row.get(part))
            size += len(text)
            if size > FILLED_CHARACTERS_MAX:
                raise PlanError("too_large", f"more than {FILLED_CHARACTERS_MAX} characters filled")
            out.append(text)
        return "".join(out)

    def check(self, row: Row, *, path: str) -> None:
        """Refuse a row that lacks a column of the template, or makes too long a text.

        Raises:
            PlanError: `bad_spec`, `too_large`.
        """
        missing = sorted(self.names - row.keys())
        if missing:
            raise PlanError("bad_spec", f"the template needs the column {missing[0]!r}", path=path)
        try:
            self.render(row)
        except PlanError as error:
            raise PlanError(error.reason, str(error), path=path) from None


def _text(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    return "" if cell is None else canonical(cell).decode()


def _split(text: str) -> list[str]:
    """Literal text at even places, names at odd ones."""
    parts = [""]
    for i, piece in enumerate(_FIELD.split(text)):
        name = piece[2:-2].strip() if i % 2 else ""
        if 0 < len(name) <= NAME_CHARACTERS_MAX:
            parts += [name, ""]
        else:
            parts[-1] += piece
    return parts


def parse_template(text: str, allowed: Collection[str] | None) -> Template:
    """Parse a template.

    Args:
        text: at most 64 KiB.
        allowed: names it may use; None: any.

    Raises:
        PlanError: `bad_spec` or `too_large`.
    """
    if len(text.encode(errors="surrogatepass")) > TEMPLATE_BYTES_MAX:
        raise PlanError("too_large", f"at most {TEMPLATE_BYTES_MAX} bytes", path="template")
    parts = _split(text)
    if len(parts) // 2 > COLUMNS_MAX:
        raise PlanError("too_large", f"at most {COLUMNS_MAX} fields", path="template")
    template = Template(parts)
    unknown = sorted(template.names - set(allowed)) if allowed is not None else []
    if unknown:
        raise PlanError("bad_spec", f"no column is called {unknown[0]!r}", path="template")
    return template
