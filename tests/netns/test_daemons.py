"""Whole daemons: two laptops behind home routers share one memory, and meet directly."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, cast

import pytest
from typing_extensions import override

from tests.helpers.daemons import COVEY, LIMIT_S, Home, wait_until
from tests.helpers.netns import Lab, Space, need_lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from daemon.json_types import Json

pytestmark = [pytest.mark.need_root, pytest.mark.slow]

CONFIG: Final = """\
[p2p]
listen = ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"]

[memory]
embedder = "none"
"""
MET_S: Final = 120.0
"""Ends a hang: joining, finding out how one is reached, places at the relay, then the punch."""


class Housed(Home):
    """A node whose daemon and commands run inside a namespace."""

    def __init__(self, folder: Path, name: str, space: Space) -> None:
        super().__init__(folder, name)
        self.space = space
        (folder / "config.toml").write_text(f'[node]\nname = "{name}"\n{CONFIG}')

    @override
    def run(
        self, *words: str, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.space.words(*COVEY, *words),
            env={**self.environ, **(env or {})},
            cwd=self.work,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def path_to(self, name: str) -> str:
        """How the device of that name is reached now; empty if it is not."""
        peers = cast("list[dict[str, Json]]", self.json("peers"))
        return next((str(peer["path"]) for peer in peers if peer["name"] == name), "")


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Housed, Housed, Housed]]:
    need_lab()
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        spaces = {
            "server": lab.public(1).host,
            "laptop": lab.home(2, "port-restricted", "4").host,
            "desk": lab.home(3, "port-restricted", "4").host,
        }
        housed = [Housed(tmp_path / name, name, space) for name, space in spaces.items()]
        for home in housed:
            stack.callback(home.stop)
            home.up()
        yield housed[0], housed[1], housed[2]


def test_two_laptops_behind_routers_share_a_memory_and_meet_directly(
    homes: tuple[Housed, Housed, Housed],
) -> None:
    server, laptop, desk = homes
    for guest in (laptop, desk):
        made = cast("dict[str, Json]", server.json("invite"))
        guest.ok("join", str(made["ticket"]), "--yes")
    laptop.ok("remember", "the router in the hall needs a restart on mondays")
    wait_until("the note arrives", lambda: desk.texts("router hall restart") != [], MET_S)
    for one, other in ((laptop, "desk"), (desk, "laptop")):
        wait_until(f"{other} is direct", lambda o=one, n=other: o.path_to(n) == "direct", MET_S)  # type: ignore[misc]

    # What follows does not need the one in the open any more.
    server.ok("down", "--now")
    desk.ok("remember", "the server is gone and nobody misses it")
    wait_until("the second note arrives", lambda: laptop.texts("server gone misses") != [], MET_S)
