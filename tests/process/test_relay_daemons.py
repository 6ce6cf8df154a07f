"""Two real daemons that nobody can dial meet over a third of their group."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


LISTEN = 'listen = ["/ip4/127.0.0.1/tcp/0"]'


def mesh(home: Home, old: str, new: str) -> None:
    """Change a machine's settings before it starts."""
    file = home.folder / "config.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture
def three(tmp_path: Path) -> Iterator[tuple[Home, Home, Home]]:
    hub = Home(tmp_path / "h", "hub")
    mesh(hub, "[p2p]", '[p2p]\nreachability = "public"')
    leaves = Home(tmp_path / "a", "ada"), Home(tmp_path / "b", "bob")
    for leaf in leaves:
        # No door at all: as behind a router that lets nobody in.
        mesh(leaf, LISTEN, 'listen = []\nreachability = "private"')
    homes = (hub, *leaves)
    for home in homes:
        home.up()
    yield homes
    for home in homes:
        home.stop()


def ticket_of(home: Home) -> str:
    made = home.json("invite", "--no-wait")
    assert isinstance(made, dict)
    return str(made["ticket"])


def peer_named(home: Home, name: str) -> dict[str, Json]:
    peers = cast("list[dict[str, Json]]", home.json("peers"))
    return next((peer for peer in peers if peer["name"] == name), {})


def test_calls_and_files_reach_a_machine_over_a_relay(
    three: tuple[Home, Home, Home], tmp_path: Path
) -> None:
    hub, ada, bob = three
    ada.ok("join", ticket_of(hub), "--yes")
    bob.ok("join", ticket_of(hub), "--yes")
    wait_until("they meet", lambda: peer_named(ada, "bob").get("path") == "relay")
    pinged = ada.json("ping", "bob", "-c", "1")
    (pong,) = cast("list[dict[str, Json]]", cast("dict[str, Json]", pinged)["pongs"])
    assert pong["path"] == "relay"
    assert "relays for 2 machines" in hub.ok("doctor", "net")
    assert "reached over relays" in ada.ok("doctor", "net")
    ada.ok("remember", "written behind a router")
    wait_until("it arrives", lambda: bob.texts("behind a router") != [])
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(range(256)) * 4000)
    put = cast("dict[str, Json]", ada.json("blob", "put", str(sent)))
    got = tmp_path / "got"
    bob.ok("blob", "get", str(put["id"]), "-o", str(got))
    assert got.read_bytes() == sent.read_bytes()
