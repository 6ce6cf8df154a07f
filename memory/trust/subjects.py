"""Whom a person means: an author or an owner, by the names that people see.

Read as: `agent`, `agent@device`, a device's name, a device's or owner's id in hex (8 digits or more
of its beginning) or in text form (its ending counts too).
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from memory.errors import RefusedError
from memory.provenance import PERSON, peer_text

if TYPE_CHECKING:
    import apsw

    from memory.trust.standing import Subject

ID_CHARS_MIN: Final = 6
"""Of an id's beginning or ending: fewer would name a stranger by accident."""


class Named(NamedTuple):
    """A subject as people see it.

    Attributes:
        device: its device key.
        agent: agent name, empty for the person at it.
        owner: owner key.
        relation: own, own_device, invited or other.
        device_name: given or published name, else the end of its id.
        row: an author row of it.
    """

    device: bytes
    agent: str
    owner: bytes
    relation: str
    device_name: str
    row: int

    @property
    def shown(self) -> str:
        """`agent@device`."""
        return f"{self.agent or PERSON}@{self.device_name}"

    @property
    def subject(self) -> Subject:
        """Its key."""
        return self.device, self.agent


def all_subjects(connection: apsw.Connection) -> list[Named]:
    """Everybody who has written something here, by device and agent."""
    rows = connection.execute(
        "SELECT a.device, a.agent, a.owner, a.class, coalesce(nullif(d.name, ''), ''), min(a.id)"
        " FROM author a LEFT JOIN device d ON d.key = a.device GROUP BY a.device, a.agent"
        " ORDER BY min(a.id)"
    )
    found = []
    for device, agent, owner, relation, name, row in rows:
        key = cast("bytes", device)
        shown = str(name) or peer_text(key)[-8:]
        found.append(
            Named(key, str(agent), cast("bytes", owner), str(relation), shown, cast("int", row))
        )
    return found


def find_subjects(connection: apsw.Connection, written: str) -> list[Named]:
    """Those that `written` names.

    Raises:
        RefusedError: `not_found`, with the nearest names.
    """
    everybody = all_subjects(connection)
    wanted = written.strip().lower()
    found = [named for named in everybody if wanted and _names(named, wanted)]
    if not found:
        raise RefusedError(
            "not_found", f"nobody here is called {written}.{nearest(everybody, wanted)}"
        )
    return found


def _names(named: Named, wanted: str) -> bool:
    agent = (named.agent or PERSON).lower()
    name, at, device = wanted.rpartition("@")
    if at:
        return name == agent and _is_device(named, device)
    return wanted == agent or _is_device(named, wanted)


def _is_device(named: Named, wanted: str) -> bool:
    if wanted == named.device_name.lower():
        return True
    ending = wanted.lstrip("….")
    if len(ending) < ID_CHARS_MIN:
        return False
    text = peer_text(named.device).lower()
    return text.endswith(ending) or any(
        written.startswith(ending) for written in (text, named.device.hex(), named.owner.hex())
    )


def nearest(everybody: list[Named], wanted: str) -> str:
    """A hint for a name that nobody has."""
    names = {
        name
        for named in everybody
        for name in (named.agent or PERSON, named.device_name, named.shown)
    }
    close = difflib.get_close_matches(wanted, sorted(names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else " `covey trust` lists everybody."


def one_owner(connection: apsw.Connection, written: str) -> tuple[bytes, list[Named]]:
    """The one foreign owner that `written` names, and its subjects.

    Raises:
        RefusedError: `not_found`; `invalid` for our own side, or for several owners at once.
    """
    found = find_subjects(connection, written)
    owners = {named.owner for named in found}
    if len(owners) > 1:
        names = ", ".join(sorted(named.shown for named in found)[:4])
        raise RefusedError("invalid", f"{written} is several owners' name: say which of {names}")
    (owner,) = owners
    everybody = [named for named in all_subjects(connection) if named.owner == owner]
    if any(named.relation in ("own", "own_device") for named in everybody):
        raise RefusedError(
            "invalid",
            f"{written} is your own: its trust follows what it does; `covey rollback` hides what an"
            " agent of yours wrote",
        )
    return owner, everybody
