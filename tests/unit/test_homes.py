"""Joining a home: the new one takes the name, former ones step aside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import trio

from daemon.errors import RpcError
from daemon.homes import join_details, take_home
from daemon.methods.group import find_group
from daemon.roles import Roles
from p2p.replication.events import GroupError, ReplicationEvent
from p2p.replication.ops import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.services import Services
    from p2p.replication.service import Replication


@dataclass(frozen=True)
class View:
    """What the daemon reads of a group."""

    group: bytes
    name: str
    home: bool = False
    role: Role | None = Role.ADMIN
    state: str = "member"


@dataclass(frozen=True)
class Pending:
    """What the daemon reads of a waiting device."""

    group: bytes
    member: bytes
    check_words: tuple[str, ...]


class Groups:
    """The seam to replication, in memory."""

    def __init__(self, *views: View) -> None:
        self.views = list(views)
        self.asked = 0
        self.subscribers: list[Callable[[ReplicationEvent], None]] = []

    def groups(self) -> list[View]:
        self.asked += 1
        return list(self.views)

    def pending(self) -> list[Pending]:
        return [Pending(b"g", b"m", ("a", "b"))]

    def invite_of(self, group: bytes, member: bytes) -> tuple[bytes, tuple[str, ...]] | None:
        if group != b"g":
            raise GroupError("unknown_group", "no")
        return (b"i", ("x", "y")) if member == b"m" else None

    async def rename_group(self, group: bytes, name: str, *, home: bool | None = None) -> None:
        await trio.lowlevel.checkpoint()
        assert all(view.name != name or view.group == group for view in self.views)
        self.views = [
            replace(view, name=name, home=view.home if home is None else home)
            if view.group == group
            else view
            for view in self.views
        ]

    def subscribe(self, fn: Callable[[ReplicationEvent], None]) -> None:
        self.subscribers.append(fn)

    def names(self) -> dict[str, tuple[bytes, bool]]:
        return {view.name: (view.group, view.home) for view in self.views}


def seam(groups: Groups) -> Replication:
    return cast("Replication", groups)


async def test_the_joined_home_becomes_home_and_the_former_steps_aside() -> None:
    groups = Groups(View(b"1", "home", home=True), View(b"2", "home-2", home=True))
    assert await take_home(seam(groups), b"2") == "home"
    assert groups.names() == {"home-old": (b"1", False), "home": (b"2", True)}
    await take_home(seam(groups), b"2")
    assert groups.names() == {"home-old": (b"1", False), "home": (b"2", True)}


async def test_former_homes_are_numbered() -> None:
    groups = Groups(
        View(b"1", "home-old"), View(b"2", "home", home=True), View(b"3", "home-2", home=True)
    )
    await take_home(seam(groups), b"3")
    assert groups.names() == {
        "home-old": (b"1", False),
        "home-old-2": (b"2", False),
        "home": (b"3", True),
    }


def test_both_screens_get_the_words_of_a_join() -> None:
    groups = seam(Groups())
    joined = {"group": b"g", "member": b"m"}
    assert join_details(groups, "group.member_joined", joined) == {
        "invite": b"i",
        "check_words": ["x", "y"],
    }
    assert join_details(groups, "group.join_pending", joined) == {"check_words": ["a", "b"]}
    assert join_details(groups, "group.member_joined", {"group": b"g", "member": b"z"}) == {}
    assert join_details(groups, "group.member_joined", {"group": b"?", "member": b"m"}) == {}
    assert join_details(groups, "group.changed", {"group": b"g"}) == {}


def test_writes_need_the_role_and_the_answer_is_remembered_between_changes() -> None:
    groups = Groups(
        View(b"1", "home", home=True, role=Role.WRITE),
        View(b"2", "team", role=Role.READ),
        View(b"3", "club", role=None, state="pending"),
        View(b"4", "past", role=None, state="left"),
    )
    roles = Roles(seam(groups))
    roles.check_write("anything")
    roles.check_write("home/anything")
    roles.check_write("nowhere/anything")
    for scope, words in (
        ("team/x", "only read"),
        ("club/x", "waits"),
        ("past/x", "is out of past"),
    ):
        with pytest.raises(RpcError, match=words) as refused:
            roles.check_write(scope)
        assert refused.value.name == "forbidden"
    assert groups.asked == 1
    groups.views[1] = replace(groups.views[1], role=Role.WRITE)
    groups.subscribers[0](ReplicationEvent("sync", "sync.finished", {}))
    with pytest.raises(RpcError):
        roles.check_write("team/x")
    groups.subscribers[0](ReplicationEvent("group", "group.changed", {}))
    roles.check_write("team/x")


def test_groups_are_found_by_name_and_prefix() -> None:
    one, two = b"\xaa" * 16 + b"\x01" * 16, b"\xaa" * 16 + b"\x02" * 16
    services = cast(
        "Services", SimpleNamespace(replication=Groups(View(one, "home"), View(two, "team")))
    )
    assert find_group(services, "team") == two
    assert find_group(services, two.hex()) == two
    assert find_group(services, two.hex()[:34]) == two
    for wanted, name in (("aaaaaaaa", "conflict"), ("aaaa", "not_found"), ("x", "not_found")):
        with pytest.raises(RpcError) as refused:
            find_group(services, wanted)
        assert refused.value.name == name
