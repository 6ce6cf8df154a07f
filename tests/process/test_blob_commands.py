"""Blobs between real daemons: the commands, kill -9 in the middle of a fetch, a full disk."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import COVEY, Home, wait_until
from tests.helpers.small_disk import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

MIB = 1 << 20
NOWHERE = "ab" * 32


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    """Two machines of one person."""
    laptop, desk = Home(tmp_path / "a", "laptop"), Home(tmp_path / "b", "desk")
    try:
        laptop.up()
        desk.up()
        made = laptop.json("invite", "--no-wait")
        assert isinstance(made, dict)
        desk.ok("join", str(made["ticket"]), "--yes")
        yield laptop, desk
    finally:
        laptop.stop()
        desk.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("blobs") / "h", "desk")
    made.up()
    yield made
    made.stop()


def row(value: Json) -> dict[str, Json]:
    assert isinstance(value, dict)
    return value


def some_file(path: Path, size: int, seed: int = 0) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return data


def put(home: Home, path: Path, *words: str) -> str:
    return home.ok("blob", "put", str(path), "--quiet", *words).strip()


def connected(home: Home) -> bool:
    peers = home.json("peers")
    assert isinstance(peers, list)
    return any(row(peer)["connected"] for peer in peers)


def counters(home: Home) -> dict[str, int]:
    status = row(home.json("rpc", "net.status"))
    return cast("dict[str, int]", status["counters"])


def refused(home: Home, *words: str, stdin: str = "") -> tuple[int, dict[str, Json]]:
    done = home.run("blob", *words, "--json", stdin=stdin)
    assert done.returncode != 0
    return done.returncode, row(row(json.loads(done.stdout))["error"])


def test_a_file_put_on_one_machine_comes_out_of_the_other(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    data = some_file(laptop.work / "film", 5 * MIB + 3)
    blob = put(laptop, laptop.work / "film")
    assert len(blob) == 64
    wait_until("they are connected", lambda: connected(desk))
    assert "5.0 MiB" in desk.ok("blob", "get", blob, "-o", "copy")
    assert (desk.work / "copy").read_bytes() == data
    listed = desk.json("blob", "list")
    assert isinstance(listed, list)
    (shown,) = listed
    assert row(shown)["whole"] is True
    assert row(shown)["groups"] == ["own"]
    # It is in no pin there, and pinned here.
    assert row(shown)["pins"] == []
    assert row(laptop.json("blob", "stat", blob))["pins"] == [{"tag": "user", "group": "own"}]
    assert counters(laptop)["blob_bytes_out"] == len(data)
    # A public one is for everybody who is connected.
    public = put(desk, desk.work / "copy", "--public", "--no-pin")
    assert public == blob
    assert row(desk.json("blob", "stat", blob))["groups"] == ["own", "*"]


def test_blobs_of_a_group_stay_in_it(pair: tuple[Home, Home]) -> None:
    laptop, desk = pair
    laptop.ok("groups", "create", "team")
    some_file(laptop.work / "plan", 1000)
    blob = put(laptop, laptop.work / "plan", "--group", "team")
    wait_until("they are connected", lambda: connected(desk))
    # The desk is no member: to it there is no such blob.
    code, error = refused(desk, "get", blob, "--timeout", "3")
    assert code == 75
    assert error["name"] == "deadline"
    assert counters(laptop)["blob_bytes_out"] == 0
    made = row(laptop.json("invite", "--group", "team", "--no-wait"))
    desk.ok("join", str(made["ticket"]), "--yes")
    assert desk.ok("blob", "get", blob, "--group", "team", "-o", "plan")
    assert (desk.work / "plan").read_bytes() == (laptop.work / "plan").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["blobs.part.mapped:2", "blobs.part.wrote:97", "blobs.part.renamed:1"]
)
def test_kill_9_in_a_fetch_loses_no_durable_progress(pair: tuple[Home, Home], point: str) -> None:
    laptop, desk = pair
    data = some_file(laptop.work / "film", 40 * MIB + 3)
    blob = put(laptop, laptop.work / "film")
    desk.ok("down")
    desk.up(COVEY_TEST_FAULT=point)
    wait_until("they are connected", lambda: connected(desk))
    with subprocess.Popen(
        [*COVEY, "blob", "get", blob, "--no-autostart"],
        env=desk.environ,
        cwd=desk.work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as getting:
        wait_until("the daemon died", lambda: desk.pid is None)
        getting.kill()
    given = counters(laptop)["blob_bytes_out"]
    desk.up()
    state = row(desk.json("blob", "stat", blob))
    assert state["whole"] is (point.startswith("blobs.part.renamed"))
    wait_until("they are connected again", lambda: connected(desk))
    desk.ok("blob", "get", blob, "-o", "copy")
    assert (desk.work / "copy").read_bytes() == data
    again = counters(laptop)["blob_bytes_out"] - given
    if point.startswith("blobs.part.mapped"):
        # Two maps of 8 MiB each were on disk.
        assert again <= len(data) - 16 * MIB
    elif point.startswith("blobs.part.renamed"):
        assert again == 0
    else:
        assert again < len(data)
    # Also the temporary files are gone.
    assert list((desk.folder / "state" / "blobs" / "tmp").iterdir()) == []


def test_put_survives_kill_9_once_it_was_said(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    try:
        home.up()
        data = some_file(home.work / "f", MIB)
        blob = put(home, home.work / "f")
        home.kill()
        home.up()
        assert row(home.json("blob", "get", blob))["size"] == len(data)
        home.ok("blob", "get", blob, "-o", "back")
        assert (home.work / "back").read_bytes() == data
        assert row(home.json("blob", "stat", blob))["pins"]
    finally:
        home.stop()


def test_a_full_disk_refuses_a_put_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, "12m") as mount:
        home = Home(mount / "h")
        try:
            home.up()
            large, small = tmp_path / "large", tmp_path / "small"
            some_file(large, 16 * MIB)
            data = some_file(small, 100_000)
            code, error = refused(home, "put", str(large))
            assert code == 75
            assert error["name"] == "storage_full"
            blob = put(home, small)
            home.ok("blob", "get", blob, "-o", str(tmp_path / "back"))
            assert (tmp_path / "back").read_bytes() == data
            home.ok("down")
            home.up()
            # What the upload had written goes with the next start at the latest.
            assert list((home.folder / "state" / "blobs" / "tmp").iterdir()) == []
        finally:
            home.stop()


# --- one machine ----------------------------------------------------------------------------------


def test_pins_and_removal_by_hand(home: Home) -> None:
    some_file(home.work / "f", 70_000, seed=1)
    blob = put(home, home.work / "f", "--tag", "first")
    home.ok("blob", "pin", blob, "--tag", "second")
    assert "pinned   second for own" in home.ok("blob", "stat", blob)
    code, error = refused(home, "rm", blob)
    assert (code, error["name"]) == (6, "conflict")
    assert "first, second" in str(error["message"])
    assert home.ok("blob", "unpin", blob, "--tag", "first").strip() == "unpinned"
    assert home.ok("blob", "unpin", blob, "--tag", "first").strip() == "it was not pinned so"
    assert home.ok("blob", "rm", blob, "--force").strip() == "removed"
    assert home.ok("blob", "rm", blob).strip() == "it was not here"
    code, error = refused(home, "stat", blob)
    assert (code, error["name"]) == (4, "not_found")


def test_standard_input_and_output_and_files_that_are_there(home: Home) -> None:
    made = row(json.loads(home.ok("blob", "put", "-", "--json", stdin="from a pipe")))
    assert made["size"] == len("from a pipe")
    blob = str(made["id"])
    done = subprocess.run(
        [*COVEY, "blob", "get", blob, "-o", "-"],
        env=home.environ,
        cwd=home.work,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"from a pipe"
    (home.work / "there").write_text("mine")
    code, error = refused(home, "get", blob, "-o", "there")
    assert (code, error["name"]) == (6, "conflict")
    assert (home.work / "there").read_text() == "mine"
    home.ok("blob", "get", blob, "-o", "there", "--force")
    assert (home.work / "there").read_text() == "from a pipe"
    assert [path for path in home.work.iterdir() if "partial" in path.name] == []
    code, error = refused(home, "put", "no such file")
    assert (code, error["name"]) == (4, "not_found")
    empty = home.ok("blob", "put", "-", "--quiet").strip()
    home.ok("blob", "get", empty, "-o", "empty")
    assert (home.work / "empty").read_bytes() == b""


@pytest.mark.attack
def test_the_socket_takes_no_path_no_odd_id_and_no_piece_out_of_place(home: Home) -> None:
    def error(name: str, **params: Json) -> str:
        done = home.run("rpc", f"blob.{name}", json.dumps(params), "--json")
        assert done.returncode != 0
        return str(row(row(json.loads(done.stdout))["error"])["name"])

    for ident in ("../../key", "a" * 63, "g" * 64, "", "/" * 64):
        for name in ("get", "stat", "pin", "unpin", "drop"):
            assert error(name, id=ident) == "invalid_params"
    assert error("put", data="no base64!") == "invalid_params"
    # Longer than an argument may be: the size alone is what counts.
    assert error("get", id=NOWHERE, length=MIB + 1) == "invalid_params"
    assert error("get", id=NOWHERE, offset=-1) == "invalid_params"
    assert error("pin", id=NOWHERE) == "not_found"
    assert error("pin", id=NOWHERE, tag="a\nb") == "invalid_params"
    assert error("pin", id=NOWHERE, tag="x", group="nobody") == "not_found"
    assert error("put", data="", group="home", public=True) == "invalid_params"
    assert error("put", upload="00" * 16, data="") == "not_found"
    assert error("list", limit=0) == "invalid_params"
    # A piece sent again is not written twice; one with a gap is refused.
    word = base64.b64encode(b"hello").decode()
    first = row(home.json("rpc", "blob.put", json.dumps({"data": word})))
    upload = first["upload"]
    for offset, size in ((0, 5), (5, 10)):
        params: dict[str, Json] = {"upload": upload, "offset": offset, "data": word}
        for _ in range(2):
            assert row(home.json("rpc", "blob.put", json.dumps(params)))["size"] == size
    assert error("put", upload=upload, offset=11, data=word) == "conflict"
    assert error("put", upload=upload, offset=7, data=word) == "conflict"
    last: dict[str, Json] = {"upload": upload, "offset": 10, "last": True}
    made = row(home.json("rpc", "blob.put", json.dumps(last)))
    assert row(home.json("rpc", "blob.put", json.dumps(last)))["id"] == made["id"]
    read: dict[str, Json] = {"id": made["id"], "length": 100}
    piece = row(home.json("rpc", "blob.get", json.dumps(read)))
    assert base64.b64decode(str(piece["data"])) == b"hellohello"


@pytest.mark.attack
def test_an_agent_needs_the_scope_share(home: Home) -> None:
    some_file(home.work / "g", 10, seed=3)
    blob = put(home, home.work / "g")
    token = home.ok("agents", "add", "helper").strip()
    done = home.run("blob", "get", blob, "--json", env={"COVEY_GRANT": token})
    assert done.returncode == 5
    assert row(row(json.loads(done.stdout))["error"])["name"] == "forbidden"
    token = home.ok("agents", "add", "sharer", "--scope", "share").strip()
    assert home.run("blob", "get", blob, env={"COVEY_GRANT": token}).returncode == 0
