"""The main job, end to end: two machines, one ticket, one memory."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import COVEY, Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    laptop, desk = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    laptop.up()
    desk.up()
    yield laptop, desk
    laptop.stop()
    desk.stop()


def ticket_of(home: Home, *words: str) -> str:
    made = home.json("invite", *words)
    assert isinstance(made, dict)
    return str(made["ticket"])


def hits_of(found: Json) -> list[dict[str, Json]]:
    assert isinstance(found, dict)
    return cast("list[dict[str, Json]]", found["hits"])


def peer_of(home: Home) -> dict[str, Json]:
    peers = home.json("peers")
    assert isinstance(peers, list)
    (peer,) = peers
    return cast("dict[str, Json]", peer)


def test_a_note_of_one_machine_is_found_on_the_other_with_author_device_and_trust(
    pair: tuple[Home, Home],
) -> None:
    laptop, desk = pair
    desk.ok("remember", "desk wrote this before it met anybody")
    laptop.ok("remember", "the build needs node 22", "--tag", "build")
    # The inviter waits at its terminal and shows the words too.
    waiting = subprocess.Popen(
        [*COVEY, "invite"],
        env=laptop.environ,
        cwd=laptop.work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert waiting.stdout is not None
        ticket = ""
        while not ticket:
            line = waiting.stdout.readline()
            assert line, "the invite ended without a ticket"
            ticket = next(iter(re.findall(r"COVEY1[A-Z2-7]+", line)), "")
        joined = desk.json("join", ticket, "--yes")
        rest, _ = waiting.communicate(timeout=30)
        assert waiting.returncode == 0
    finally:
        waiting.kill()
        waiting.wait()
    assert isinstance(joined, dict)
    assert joined["state"] == "member"
    assert joined["name"] == "home"
    words = joined["check_words"]
    assert isinstance(words, list)
    assert len(words) == 6
    assert " ".join(map(str, words)) in rest

    wait_until("the note arrives", lambda: desk.texts("node build") != [])
    (hit,) = hits_of(desk.json("recall", "node build"))
    assert hit["text"] == "the build needs node 22"
    assert hit["tags"] == ["build"]
    assert cast("float", hit["trust"]) == pytest.approx(0.86, abs=0.01)
    author = cast("dict[str, Json]", hit["author"])
    assert author["relation"] == "own_device"
    assert author["device"] == "laptop"
    assert author["device_id"] == cast("dict[str, Json]", laptop.json("status"))["node_id"]

    # The other way, on a live connection, and the name travels with it.
    desk.ok("remember", "desk answers laptop")
    wait_until("the answer arrives", lambda: laptop.texts("answers laptop") != [])
    wait_until("the name arrives", lambda: peer_of(laptop)["name"] == "desk")
    (hit,) = hits_of(laptop.json("recall", "answers laptop"))
    assert cast("dict[str, Json]", hit["author"])["device"] == "desk"

    # What desk wrote in its former home stayed there.
    (own,) = hits_of(desk.json("recall", "before it met"))
    assert str(own["scope"]).startswith("home-old/")
    assert laptop.texts("before it met") == []


def test_private_notes_never_leave_the_machine(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    desk.ok("join", ticket_of(laptop), "--yes")
    laptop.ok("remember", "the safe is behind the picture", "--scope", "private/main")
    laptop.ok("remember", "the marker everybody may see")
    wait_until("the marker arrives", lambda: desk.texts("marker everybody") != [])
    desk.ok("sync", "now")
    assert desk.texts("safe behind picture") == []
    assert laptop.texts("safe behind picture") == ["the safe is behind the picture"]


def test_a_ticket_works_once_and_says_so(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    ticket = ticket_of(laptop)
    desk.ok("join", ticket, "--yes")
    again = desk.run("join", ticket, "--yes", "--json")
    assert again.returncode == 6
    third = Home(laptop.folder.parent / "c", "third")
    try:
        third.up()
        used = third.run("join", ticket, "--yes", "--json")
        assert used.returncode in {5, 6}, used.stdout
        broken = third.run("join", ticket[:-1] + ("A" if ticket[-1] != "A" else "B"), "--yes")
        assert broken.returncode != 0
        assert "ticket" in broken.stderr
    finally:
        third.stop()


def test_a_ticket_need_not_stand_among_the_arguments(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    none = desk.run("join", "--yes")
    assert none.returncode == 2
    assert "COVEY_TICKET" in none.stderr
    laptop.ok("groups", "create", "team")
    ticket = ticket_of(laptop, "--group", "team")
    assert "Joined team" in desk.ok("join", "-", stdin=f"{ticket[:40]}\n  {ticket[40:]}\n")
    laptop.ok("groups", "create", "club")
    given = {"COVEY_TICKET": ticket_of(laptop, "--group", "club")}
    assert "Joined club" in desk.ok("join", env=given)


def test_joining_a_home_needs_a_yes(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    asked = desk.run("join", ticket_of(laptop))
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    groups = desk.json("groups")
    assert isinstance(groups, list)
    assert len(groups) == 2


def test_a_confirmed_join_waits_and_readers_cannot_write(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    laptop.ok("groups", "create", "team")
    laptop.ok("remember", "the plan is simple", "--scope", "team/plan")
    ticket = ticket_of(laptop, "--group", "team", "--role", "read", "--confirm")
    joined = desk.json("join", ticket)
    assert isinstance(joined, dict)
    assert joined["state"] == "pending"
    assert desk.texts("plan simple") == []
    wait_until("the request arrives", lambda: laptop.json("peers", "pending") != [])
    pending = laptop.json("peers", "pending")
    assert isinstance(pending, list)
    (request,) = cast("list[dict[str, Json]]", pending)
    assert request["check_words"] == joined["check_words"]
    assert request["role"] == "read"
    laptop.ok("peers", "accept", str(request["join"])[:8])
    wait_until("the plan arrives", lambda: desk.texts("plan simple", "--all") != [])
    (hit,) = hits_of(desk.json("recall", "plan simple", "--all"))
    assert cast("dict[str, Json]", hit["author"])["relation"] == "peer"
    assert cast("float", hit["trust"]) < 0.6
    refused = desk.run("remember", "let me add", "--scope", "team/plan", "--json")
    assert refused.returncode == 5
    assert "only read" in refused.stdout
    assert laptop.texts("let me add") == []


def test_machines_agree_again_after_one_was_away(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    desk.ok("join", ticket_of(laptop), "--yes")
    book = desk.folder / "state" / "peers.msgpack"
    key = bytes.fromhex(str(peer_of(desk)["node_id"]))
    wait_until("desk remembers where laptop is", lambda: book.exists() and key in book.read_bytes())
    desk.kill()
    laptop.ok("remember", "written while desk was dead")
    desk.up()
    wait_until("the note arrives", lambda: desk.texts("desk was dead") != [])
    laptop.ok("peers", "pause")
    wait_until("apart", lambda: not peer_of(desk)["connected"])
    laptop.ok("remember", "written while laptop was offline")
    desk.ok("remember", "written while alone at the desk")
    laptop.ok("peers", "resume")
    wait_until("desk has it", lambda: desk.texts("laptop was offline") != [])
    wait_until("laptop has it", lambda: laptop.texts("alone at the desk") != [])
    digest = ("rpc", "sync.digest", '{"group":"home"}')
    wait_until("equal sets", lambda: laptop.ok(*digest) == desk.ok(*digest))


def test_the_way_to_a_machine_is_shown_measured_and_told(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    desk.ok("join", ticket_of(laptop), "--yes")
    wait_until("they are connected", lambda: bool(peer_of(laptop)["connected"]))
    peer = peer_of(laptop)
    assert peer["path"] == "direct"
    assert cast("int", peer["since_ms"]) > 1_700_000_000_000
    assert cast("int", peer["bytes_in"]) > 0
    assert cast("int", peer["bytes_out"]) > 0
    wait_until("it says its software", lambda: str(peer_of(laptop)["software"]) != "")
    assert re.search(r"● .* direct \d+ ms, .*↓.*iB ↑.*iB", laptop.ok("peers"))
    pinged = laptop.json("ping", str(peer["peer_id"]), "-c", "2")
    assert isinstance(pinged, dict)
    assert len(cast("list[Json]", pinged["pongs"])) == 2
    assert 0 < cast("float", pinged["min_ms"]) <= cast("float", pinged["max_ms"])
    figures = laptop.ok("metrics")
    assert 'covey_peers{path="direct"} 1' in figures
    assert "# TYPE covey_net_events_total counter" in figures
    target = laptop.work / "covey.prom"
    laptop.ok("metrics", "--textfile", str(target))
    assert target.read_text().startswith("# HELP covey_loop_lag_seconds")
