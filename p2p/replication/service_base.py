"""What the parts of replication's public face have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p.replication.events import GroupError
from p2p.replication.groups import STATE_REFUSED, Group

if TYPE_CHECKING:
    from p2p.node import Node
    from p2p.replication.core import Core
    from p2p.replication.driver import Driver


class Facet:
    """A part of `Replication`, which sets these."""

    _core: Core
    _node: Node
    _driver: Driver

    def _group(self, group: bytes) -> Group:
        found = self._core.groups.get(group)
        if found is None or found.state == STATE_REFUSED:
            raise GroupError("unknown_group", "this device is in no such group")
        return found
