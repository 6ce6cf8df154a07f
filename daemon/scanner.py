"""The daemon's `Scanner`: secrets and imperative text, by the settings, with counts.

Counts are by kind and of this run; the secret itself is in no count, log or error.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from daemon.imperative import is_imperative
from daemon.secrets import redact
from memory.errors import RefusedError
from memory.seams import Scanned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.config import SecurityConfig

log = logging.getLogger("covey.daemon.scanner")

_IMPERATIVE: Final = frozenset({"imperative"})
_NONE: Final[frozenset[str]] = frozenset()


class TextScanner:
    """Looks through each text that is stored.

    Args:
        config: the settings.
    """

    def __init__(self, config: SecurityConfig) -> None:
        self._config = config
        self._redactions: Counter[str] = Counter()

    @property
    def redactions(self) -> Mapping[str, int]:
        """Secrets taken out since the start, by kind."""
        return self._redactions

    def scan(self, text: str, *, foreign: bool, person: bool = False) -> Scanned:
        """A text without its secrets.

        Args:
            text: cleaned text.
            foreign: whether another device wrote it.
            person: whether the person at the terminal writes it.

        Raises:
            RefusedError: `secret`: own text holds one and the setting says to refuse.
        """
        if self._keeps(foreign=foreign, person=person):
            return Scanned(text)
        without, kinds = redact(text)
        if not kinds:
            return Scanned(text)
        if not foreign and self._config.secrets == "reject":
            raise RefusedError(
                "secret",
                f"the text holds what looks like a secret ({', '.join(sorted(set(kinds)))}):"
                " write where it is kept instead",
            )
        self._redactions.update(kinds)
        fields = {"kinds": sorted(set(kinds)), "foreign": foreign}
        log.info("redacted", extra={"f": fields, "remote": foreign})
        return Scanned(without, kinds)

    def flags(self, text: str) -> frozenset[str]:
        """`imperative` for a text that speaks to a model."""
        return _IMPERATIVE if is_imperative(text) else _NONE

    def _keeps(self, *, foreign: bool, person: bool) -> bool:
        if foreign:
            return self._config.peer_secrets == "allow"
        return person and self._config.secrets == "allow"
