"""Joining a home, and what the inviter's screen needs to know of a join."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from daemon.first_start import HOME
from p2p.replication.events import GroupError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.replication.events import EventValue
    from p2p.replication.service import Replication

log = logging.getLogger("covey.daemon")

FORMER: Final = "home-old"


async def take_home(replication: Replication, group: bytes) -> str:
    """Make `group` this device's home; the former one stays under another name.

    Safe to repeat: a step that was done before is not done again.

    Args:
        replication: our groups.
        group: a home that we are a member of.

    Returns:
        Its local name from now on: `home`.
    """
    views = replication.groups()
    taken = {view.name for view in views}
    for view in views:
        if view.home and view.group != group:
            name = _free(taken) if view.name == HOME else view.name
            taken.add(name)
            await replication.rename_group(view.group, name, home=False)
            log.info("home_put_aside", extra={"f": {"group": view.group.hex(), "name": name}})
    await replication.rename_group(group, HOME, home=True)
    return HOME


def _free(taken: set[str]) -> str:
    """`home-old`, `home-old-2`, ...: the first that no group has."""
    number = 2
    name = FORMER
    while name in taken:
        name = f"{FORMER}-{number}"
        number += 1
    return name


def join_details(
    replication: Replication, name: str, data: Mapping[str, EventValue]
) -> dict[str, object]:
    """Invite and check words for the events of a join, so that both screens can show them."""
    group, member = data.get("group"), data.get("member")
    if not isinstance(group, bytes) or not isinstance(member, bytes):
        return {}
    if name == "group.member_joined":
        try:
            found = replication.invite_of(group, member)
        except GroupError:
            return {}
        return {} if found is None else {"invite": found[0], "check_words": list(found[1])}
    if name == "group.join_pending":
        for waiting in replication.pending():
            if waiting.group == group and waiting.member == member:
                return {"check_words": list(waiting.check_words)}
    return {}
