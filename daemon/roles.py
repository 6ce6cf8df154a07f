"""What this device may write where: asked on every write, so remembered between changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.errors import RpcError
from p2p.replication.groups import STATE_LEFT
from p2p.replication.ops import Role

if TYPE_CHECKING:
    from p2p.replication.events import ReplicationEvent
    from p2p.replication.service import Replication


class Roles:
    """Our role in each group, by local name; "" is the home.

    The memory stores whatever it is told; a record that our role does not carry would be void on
    every other device, and whoever wrote it would never learn why nobody sees it.

    Args:
        replication: the groups.
    """

    def __init__(self, replication: Replication) -> None:
        self._replication = replication
        self._known: dict[str, Role | None] | None = None
        self._out: frozenset[str] = frozenset()
        """Groups that this device was taken out of, or left."""
        replication.subscribe(self._on_event)

    def _on_event(self, event: ReplicationEvent) -> None:
        if event.topic == "group":
            self.forget()

    def forget(self) -> None:
        """Ask anew next time."""
        self._known = None

    def _roles(self) -> dict[str, Role | None]:
        if self._known is None:
            self._known = {}
            views = self._replication.groups()
            self._out = frozenset(view.name for view in views if view.state == STATE_LEFT)
            for view in views:
                self._known[view.name] = view.role
                if view.home and view.role is not None:
                    self._known[""] = view.role
        return self._known

    def may_write(self, scope: str) -> bool:
        """Whether a write into a scope counts for the others of its group."""
        try:
            self.check_write(scope)
        except RpcError:
            return False
        return True

    def check_write(self, scope: str) -> None:
        """Refuse a write that would count nowhere else.

        Args:
            scope: as written: `name`, `group/name` or `private/name`.

        Raises:
            RpcError: forbidden. An unknown group is the memory's to refuse.
        """
        group, slash, _ = scope.partition("/")
        name = group if slash else ""
        roles = self._roles()
        if name not in roles:
            return
        role = roles[name]
        if name in self._out:
            raise RpcError(
                "forbidden",
                f"this device is out of {name}: it was taken out, or left",
                remedy="A new ticket brings it back (`covey join`), or write to private/NAME.",
                data={"reason": "not_a_member"},
            )
        if role is None or role < Role.WRITE:
            may = "waits to be let in" if role is None else "may only read"
            raise RpcError(
                "forbidden",
                f"this device {may} in {name or 'home'}",
                remedy="Ask an admin of the group for another role, or write to private/NAME.",
                data={"reason": "not_permitted"},
            )
