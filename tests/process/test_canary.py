"""What was erased is in no byte of two real homes, and nobody brings it back."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.canary import ACCENTED, MARK, TEXT, find, spellings
from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

COPY = f"Remember: the {MARK} roosts behind the third gate, as the {ACCENTED} keeper said"
CONCLUSION = f"Nobody may open a gate while the {MARK} is asleep"
FORMS = spellings(MARK, (TEXT, COPY, CONCLUSION)) | {
    f"accented {name}": data for name, data in spellings(ACCENTED).items()
}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    homes = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    for home in homes:
        home.up()
    yield homes
    for home in homes:
        home.stop()


def join(laptop: Home, desk: Home, *words: str) -> None:
    made = cast("dict[str, Json]", laptop.json("invite", "--no-wait", *words))
    desk.ok("join", str(made["ticket"]), *([] if words else ["--yes"]))


def remember(home: Home, text: str, **more: Json) -> str:
    made = json.loads(home.ok("rpc", "memory.remember", json.dumps({"text": text, **more})))
    return str(made[0]["id"])


def backup(home: Home) -> Path:
    made = cast("dict[str, Json]", home.json("backup", "create"))
    return home.folder / "state" / "backups" / str(made["name"])


def status(home: Home) -> list[dict[str, Json]]:
    return cast("list[dict[str, Json]]", home.json("erase", "--status"))


def all_confirmed(home: Home, at_least: int) -> bool:
    rows = status(home)
    return len(rows) >= at_least and all(
        row["confirmed"] and not row["outstanding"] for row in rows
    )


def everywhere(*homes: Home) -> list[tuple[str, str]]:
    return [one for home in homes for one in find(home.folder, FORMS)]


@pytest.mark.slow
def test_no_byte_of_an_erased_memory_is_left_in_two_homes(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    join(laptop, desk)
    ident = remember(
        laptop, TEXT, title=f"About {MARK}", tags=[MARK.lower()], thread="gates", speaker="keeper"
    )
    remember(laptop, CONCLUSION, derived_from=[ident])
    remember(laptop, "a note about hinges that stays")
    wait_until("both arrive", lambda: len(desk.texts(MARK)) == 2)
    remember(desk, COPY, derived_from=[ident])
    wait_until("the copy arrives", lambda: len(laptop.texts(MARK)) == 3)
    for home in pair:
        # Caches of answers, the log of what was shown, statistics of words.
        for query in (MARK, f"where does the {MARK} roost", f"{ACCENTED} keeper"):
            assert home.texts(query) != []
        backup(home)
        home.ok("export", "--force", str(home.work / "elsewhere.jsonl"))
        exported = [form for name, form in find(home.folder, FORMS) if name.startswith("work/")]
        assert "plain" in exported, "the search finds what is there"
        (home.work / "elsewhere.jsonl").unlink()
    # The search finds it in plain, in the database of each, before it is erased.
    for home in pair:
        before = find(home.folder, FORMS)
        assert {"plain", "lower", "accented plain"} <= {form for _, form in before}, before
        assert any(name.startswith("state/covey.db") for name, _ in before)

    # Not yet `done` if the desk's copy is going at the same moment; it ends so by itself.
    erased = laptop.run("erase", ident, "--yes", "--json")
    assert erased.returncode in {0, 75}, erased.stderr
    report = json.loads(erased.stdout)
    assert (report["memories"], report["derived"]) == (2, 1)
    wait_until("the desk confirms", lambda: all_confirmed(laptop, 2))
    wait_until("the desk's own is confirmed", lambda: all_confirmed(desk, 2))
    for home in pair:
        assert home.texts(MARK) == []
        backup(home)
        assert home.texts("hinges") == ["a note about hinges that stays"]
    # The confirming machine cleans its log behind the transaction: the files end empty of it.
    wait_until("every byte is gone", lambda: everywhere(*pair) == [])
    # So it stays over a restart, and in what a stopped node leaves on disk.
    for home in pair:
        home.stop()
    assert everywhere(*pair) == []
    for home in pair:
        home.up()
        assert home.texts(MARK) == []
    for home in pair:
        home.stop()
    assert everywhere(*pair) == []


@pytest.mark.slow
def test_a_machine_that_slept_and_went_back_to_its_backup_erases_and_confirms(
    pair: tuple[Home, Home],
) -> None:
    laptop, desk = pair
    join(laptop, desk)
    ident = remember(laptop, TEXT)
    remember(laptop, "a note about hinges that stays")
    wait_until("both arrive", lambda: desk.texts(MARK) != [] and desk.texts("hinges") != [])
    made = backup(desk)
    elsewhere = desk.folder.parent / "usb"
    shutil.copytree(made, elsewhere)
    desk.stop()
    laptop.ok("erase", ident, "--yes")
    (row,) = status(laptop)
    assert (row["confirmed"], row["outstanding"]) == ([], ["desk"])
    desk.up()
    wait_until("it erases", lambda: desk.texts(MARK) == [])
    wait_until("it confirms", lambda: all_confirmed(laptop, 1))
    desk.stop()
    # Its own old backup, in the place of a state that knows of no erasure.
    (desk.folder / "state" / "erased.ids").unlink()
    (desk.folder / "state" / "covey.db").unlink()
    restored = cast("dict[str, Json]", desk.json("restore", str(elsewhere)))
    assert restored["erased_again"] == 0
    shutil.rmtree(elsewhere)
    assert find(desk.folder, FORMS), "the old text is back on this disk"
    desk.up()
    wait_until("it erases again", lambda: desk.texts(MARK) == [])
    assert desk.texts("hinges") == ["a note about hinges that stays"]
    digest = ("rpc", "sync.digest", '{"group":"home"}')
    wait_until("equal sets", lambda: laptop.ok(*digest) == desk.ok(*digest))
    assert laptop.texts(MARK) == []
    for home in pair:
        shutil.rmtree(home.folder / "state" / "before-restore", ignore_errors=True)
        for aside in (home.folder / "state").glob("before-restore-*"):
            shutil.rmtree(aside)
    wait_until("every byte is gone", lambda: everywhere(*pair) == [])


@pytest.mark.slow
def test_a_restore_takes_out_what_was_erased_before_anything_is_served(
    pair: tuple[Home, Home],
) -> None:
    laptop, desk = pair
    join(laptop, desk)
    ident = remember(laptop, TEXT)
    remember(laptop, "a note about hinges that stays")
    wait_until("both arrive", lambda: desk.texts(MARK) != [] and desk.texts("hinges") != [])
    elsewhere = desk.folder.parent / "usb"
    shutil.copytree(backup(desk), elsewhere)
    laptop.ok("erase", ident, "--yes")
    wait_until("it confirms", lambda: all_confirmed(laptop, 1))
    (listed,) = cast("list[dict[str, Json]]", desk.json("backup", "list"))
    (group,) = cast("list[dict[str, Json]]", listed["erased_in"])
    assert (group["group"], group["records"], group["readable"]) == ("home", 1, 0)
    assert "older than an erasure: 1 of home, unreadable in it" in desk.ok("backup", "list")
    for home in pair:
        home.stop()
    done = cast("dict[str, Json]", desk.json("restore", str(elsewhere)))
    shutil.rmtree(elsewhere)
    (group,) = cast("list[dict[str, Json]]", done["erased_in"])
    assert (done["erased_again"], group["group"], group["records"]) == (1, "home", 1)
    # Nobody else runs, so nobody told it; and no daemon ran here yet.
    assert find(desk.folder, FORMS) == []
    desk.up()
    assert desk.texts(MARK) == []
    assert desk.texts("hinges") == ["a note about hinges that stays"]


@pytest.mark.slow
def test_an_admin_has_a_members_note_hidden_everywhere_at_once(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    laptop.ok("groups", "create", "team")
    join(laptop, desk, "--group", "team", "--role", "write")
    ident = remember(desk, TEXT, scope="team/gates")
    wait_until("it arrives", lambda: laptop.texts(MARK, "--all") != [])
    own = remember(laptop, "a note about hinges that stays", scope="team/gates")
    wait_until("the other arrives", lambda: desk.texts("hinges", "--all") != [])
    # Who is no admin erases here alone, whatever it asks for.
    refused = json.loads(desk.ok("erase", own, "--for-group", "--dry-run", "--json"))
    assert refused["items"][0]["status"] == "erased_here"
    shown = json.loads(laptop.ok("erase", ident, "--for-group", "--dry-run", "--json"))
    assert shown["items"][0]["status"] == "erased_group"
    report = cast("dict[str, Json]", laptop.json("erase", ident, "--for-group", "--yes"))
    assert (report["state"], report["told"], report["here"]) == ("done", 1, 0)
    assert find(laptop.folder, FORMS) == []
    wait_until("it is hidden at the author's", lambda: desk.texts(MARK, "--all") == [])
    assert find(desk.folder, FORMS), "and not gone yet"
    assert desk.texts("hinges", "--all") == ["a note about hinges that stays"]
    (row,) = status(desk)
    assert row["hidden_until"]
    assert (row["by"], row["confirmed"], row["outstanding"]) == ("laptop", [], ["desk"])
    assert "hidden here, gone at" in desk.ok("erase", "--status")
    digest = ("rpc", "sync.digest", '{"group":"team"}')
    wait_until("equal sets", lambda: laptop.ok(*digest) == desk.ok(*digest))
