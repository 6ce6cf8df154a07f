"""Templates: `{{column}}` is replaced by the row's cell, in one pass.

There is nothing else: no conditions, no nesting, and what a cell holds is never read again, so a
cell that says `{{secret}}` stays those ten characters. Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from federated.errors import PlanError
from federated.jobs.canon import canonical
from federated.jobs.limits import COLUMNS_MAX, TEMPLATE_BYTES_MAX

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
        """The text for a row; a cell that is no text as canonical JSON, an absent one empty."""
        out = []
        for i, part in enumerate(self._parts):
            if i % 2 == 0:
                out.append(part)
                continue
            cell = row.get(part)
            if isinstance(cell, str):
                out.append(cell)
            elif cell is not None:
                out.append(canonical(cell).decode())
        return "".join(out)

    def check(self, row: Row, *, path: str) -> None:
        """Refuse a row that lacks a column of the template.

        Raises:
            PlanError: `bad_spec`.
        """
        missing = sorted(self.names - row.keys())
        if missing:
            raise PlanError("bad_spec", f"the template needs the column {missing[0]!r}", path=path)


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
