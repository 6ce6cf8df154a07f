"""Edits of clients' files: golden before and after, nasty forms, and what is left alone.

`COVEY_TEST_GOLDEN=write` writes the golden files anew; read the difference before you keep it.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from daemon.connect import files, jsonc, place, steps, toml
from daemon.connect.clients import AUTOMATIC, CLIENTS
from daemon.connect.records import Records

if TYPE_CHECKING:
    from daemon.json_types import Json

GOLDEN = Path(__file__).parent / "golden" / "connect_edits"
COMMAND = "/opt/covey/bin/covey"
SERVERS = ["mcpServers", "covey"]


def goal(name: str = "cursor", command: str = COMMAND) -> place.Goal:
    return place.Goal(command, {"COVEY_AGENT": name})


def befores() -> list[Path]:
    return sorted(GOLDEN.glob("*.before"))


def client_of(path: Path) -> str:
    return path.name.split("__")[0]


@pytest.mark.parametrize("path", befores(), ids=lambda path: path.stem)
def test_an_edit_is_the_golden_file_and_comes_back_to_the_byte(path: Path, tmp_path: Path) -> None:
    client = CLIENTS[client_of(path)]
    before = path.read_bytes()
    text = before.decode("utf-8")
    is_hooks = "__hooks" in path.name
    put = place.put_hooks if is_hooks else place.put
    after = put(client, text, goal(client.name)).encode()
    golden = path.with_suffix(".after")
    if os.environ.get("COVEY_TEST_GOLDEN") == "write":
        golden.write_bytes(after)
    assert after == golden.read_bytes()
    assert put(client, after.decode(), goal(client.name)).encode() == after, "twice = no change"
    kept = connect_and_leave(client.name, before, tmp_path, "hooks" if is_hooks else "server")
    assert kept == before


def connect_and_leave(
    name: str, before: bytes | None, folder: Path, what: str = "server"
) -> bytes | None:
    """The file's bytes after connecting and disconnecting, as the commands do it."""
    client = CLIENTS[name]
    target = folder / "deep" / f"settings.{client.form}"
    if before is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(before)
    records = Records(str(folder / "records"))
    planned = steps.plan_connect(
        client,
        what,
        str(target),
        goal(name),
        project=False,
        records=records,
        environ={},  # type: ignore[arg-type]
    )
    assert steps.do_connect(planned, records, {}) == ""
    assert target.read_bytes() != before
    leaving = steps.plan_disconnect(
        client,
        what,
        str(target),
        project=False,
        records=records,
        environ={},  # type: ignore[arg-type]
    )
    assert leaving.exact
    steps.do_disconnect(leaving, records, {})
    assert list((folder / "records").iterdir()) == []
    return target.read_bytes() if target.exists() else None


def test_every_client_that_is_written_has_golden_edits() -> None:
    assert {client_of(path) for path in befores()} == set(AUTOMATIC)


@pytest.mark.parametrize("name", AUTOMATIC)
def test_a_missing_file_is_made_and_goes_again_with_its_folder(name: str, tmp_path: Path) -> None:
    assert connect_and_leave(name, None, tmp_path) is None
    assert not (tmp_path / "deep").exists()


# The way back without the original bytes: somebody else wrote into the file meanwhile.


@pytest.mark.parametrize("path", befores(), ids=lambda path: path.stem)
def test_what_others_wrote_meanwhile_stays_and_exactly_ours_goes(
    path: Path, tmp_path: Path
) -> None:
    client = CLIENTS[client_of(path)]
    what = "hooks" if "__hooks" in path.name else "server"
    target = tmp_path / "settings"
    target.write_bytes(path.read_bytes())
    records = Records(str(tmp_path / "records"))
    planned = steps.plan_connect(
        client,
        what,
        str(target),
        goal(client.name),
        project=False,
        records=records,
        environ={},  # type: ignore[arg-type]
    )
    steps.do_connect(planned, records, {})
    text = target.read_bytes().decode()
    is_toml = client.form == "toml" and what == "server"
    if is_toml:
        changed = text + '\n[added]\nby = "somebody"\n'
    else:
        changed = jsonc.put(text, ["added"], {"by": "somebody"})
    target.write_bytes(changed.encode())
    leaving = steps.plan_disconnect(
        client,
        what,
        str(target),
        project=False,
        records=records,
        environ={},  # type: ignore[arg-type]
    )
    assert not leaving.exact
    steps.do_disconnect(leaving, records, {})
    form = CLIENTS["codex" if is_toml else "cursor"]
    left = place.decode(form, target.read_bytes().decode())
    before = place.decode(form, path.read_bytes().decode())
    assert isinstance(before, dict)
    assert left == {**before, "added": {"by": "somebody"}}


def plan(name: str, path: Path, command: str = COMMAND) -> tuple[steps.Step, Records]:
    records = Records(str(path.parent / "records"))
    step = steps.plan_connect(
        CLIENTS[name],
        "server",
        str(path),
        goal(name, command),
        project=False,
        records=records,
        environ={},
    )
    return step, records


def leave(name: str, path: Path) -> steps.Step:
    records = Records(str(path.parent / "records"))
    step = steps.plan_disconnect(
        CLIENTS[name], "server", str(path), project=False, records=records, environ={}
    )
    steps.do_disconnect(step, records, {})
    return step


def test_a_file_of_ours_that_others_wrote_into_is_never_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    step, records = plan("cursor", path, "/old/covey")
    steps.do_connect(step, records, {})
    path.write_text(jsonc.put(path.read_text(), ["mcpServers", "x"], {"command": "y"}))
    step, records = plan("cursor", path)
    steps.do_connect(step, records, {})
    assert not leave("cursor", path).exact
    assert json.loads(path.read_text()) == {"mcpServers": {"x": {"command": "y"}}}


def test_an_entry_that_was_pasted_is_not_what_disconnecting_goes_back_to(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"covey": {"command": "/old/covey", "args": ["mcp"]}}}')
    step, records = plan("cursor", path)
    steps.do_connect(step, records, {})
    leave("cursor", path)
    assert "covey" not in path.read_text()


def test_connecting_again_after_ours_was_taken_out_by_hand_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    step, records = plan("cursor", path)
    steps.do_connect(step, records, {})
    path.write_text('{"n": 1}')
    step, records = plan("cursor", path)
    steps.do_connect(step, records, {})
    assert leave("cursor", path).exact
    assert path.read_text() == '{"n": 1}'


def test_a_moved_covey_keeps_the_way_back(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("{ }")
    for command in ("/old/covey", COMMAND):
        step, records = plan("cursor", path, command)
        steps.do_connect(step, records, {})
    assert COMMAND in path.read_text()
    assert leave("cursor", path).exact
    assert path.read_text() == "{ }"


def test_a_write_that_fails_keeps_no_record(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("{}")
    step, records = plan("cursor", path)
    path.write_text('{"by": "somebody"}')
    with pytest.raises(files.FileError, match="meanwhile"):
        steps.do_connect(step, records, {})
    assert records.all("cursor") == []
    assert path.read_text() == '{"by": "somebody"}'


# JSON with comments.


@pytest.mark.parametrize(
    "before",
    [
        "{}",
        '\ufeff{"a":1}',
        '{"a":1,}',
        '{"a": 1 // x\n}',
        '{\n\t"a": 1, // x\n\t// y\n}\n',
        '{\r\n  "mcpServers": {\r\n    "x": {"command": "y"},\r\n  },\r\n}\r\n',
        '{"mcpServers": {}}',
        '{"mcpServers": { // none\n}}',
        '{\n    "mcpServers": {\n        "b": {\n       "c": 1 /* z */\n    } /* q */\n    }\n}',
        '{"mcpServers": {"a": {}}, "z": [1, 2, {"ü": "\\u00fc"}]}',
        '{\n  "mcpServers": {\n    "a": 1\n    // "covey": {}\n  }\n}',
        '{"url": "http://x//y", /* , */ "b": "}" }',
    ],
)
def test_jsonc_put_then_remove_is_the_same_text(before: str) -> None:
    value: Json = {"command": COMMAND, "env": {"A": "ü"}}
    after = jsonc.put(before, SERVERS, value)
    assert jsonc.get(after, SERVERS) == value
    assert jsonc.put(after, SERVERS, value) == after
    assert jsonc.remove(after, SERVERS, keep=jsonc.depth_of(before, SERVERS)) == before


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "{",
        '{"a"}',
        '{"a":}',
        '{"a":1 "b":2}',
        "{,}",
        '{"a":1,,}',
        "{'a':1}",
        "{a:1}",
        '{"a":01}',
        '{"a":NaN}',
        '{"a":1}}',
        '{"a":1} {}',
        '{"a": "x\ny"}',
        '{"a": /* }',
        '{"a": "\\x"}',
        "]",
        "[}",
        '{"a":1]',
        "\x00",
        "[" * 5000,
        '{"a":' * 5000,
        # Each of these took a time that doubled with every character of the string.
        '{"a": "' + "x" * 99,
        '{"path": "C:\\Users\\somebody\\AppData\\Roaming\\npm\\node_modules\\and\\so\\on"}',
    ],
)
def test_what_is_no_jsonc_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(jsonc.JsoncError, match="line "):
        jsonc.parse(text)


@pytest.mark.parametrize("name", ["claude-code", "codex"])
def test_a_number_that_python_does_not_read_is_refused(name: str) -> None:
    digits = "1" * 5000
    text = f"a = {digits}\n" if name == "codex" else f'{{"a": {digits}}}'
    with pytest.raises(place.PlaceError, match="cannot be read"):
        place.put(CLIENTS[name], text, goal())


@pytest.mark.parametrize("indent", [None, 2])
def test_an_edit_of_a_large_file_takes_a_time_like_its_size(indent: int | None) -> None:
    """Claude Code keeps the history of every project in the file of its servers."""
    projects = {f"/p/{i}": {"history": [{"display": "x", "n": i}] * 5} for i in range(4000)}
    text = json.dumps({"projects": projects}, indent=indent)
    began = time.process_time()
    edited = place.put(CLIENTS["claude-code"], text, goal())
    # About 1 s here; looking back to the start of the line from every element, 40 s.
    assert time.process_time() - began < 10
    assert place.take(CLIENTS["claude-code"], edited, goal(), keep=0) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "no object"),
        ('{"mcpServers": []}', "no object"),
        ('{"mcpServers": null}', "no object"),
        ('{"mcpServers": {}, "mcpServers": {}}', "twice"),
        ('{"servers": {"x": {"command": "y"}}}', "servers"),
        ('{"x": {"command": "y"}, "z": {"url": "http://q"}}', "at the top"),
        ('{"mcpServers": {"covey": "x"}}', "no table"),
        ('{"mcpServers": {"covey": {}},', "cannot be read"),
    ],
)
def test_a_foreign_shape_is_named_and_left_alone(text: str, reason: str, tmp_path: Path) -> None:
    target = tmp_path / ".mcp.json"
    target.write_text(text)
    records = Records(str(tmp_path / "records"))
    with pytest.raises(place.PlaceError, match=reason):
        steps.plan_connect(
            CLIENTS["claude-code"],
            "server",
            str(target),
            goal(),
            project=True,
            records=records,
            environ={},
        )
    assert target.read_text() == text


def test_an_older_entry_is_updated_and_keeps_what_the_person_added() -> None:
    before = (
        '{"mcpServers": {"covey": {"command": "/old/covey", "args": ["mcp"],'
        '\n"disabled": true, // me\n'
        '  "env": {"COVEY_AGENT": "x", "COVEY_GRANT": "cvy_old", "MINE": "1"}}}}'
    )
    after = place.put(CLIENTS["cursor"], before, goal())
    assert place.find(CLIENTS["cursor"], after) == {
        "command": COMMAND,
        "args": ["mcp"],
        "disabled": True,
        "env": {"MINE": "1", "COVEY_AGENT": "cursor"},
    }
    assert "// me" in after


# TOML.


def test_an_older_toml_entry_is_updated_and_keeps_what_the_person_added() -> None:
    before = (
        '# mine\nmodel = "x"   # odd spacing\n\n[mcp_servers.covey]\ncommand = "/old/covey"\n'
        'args = ["mcp"]\nstartup_timeout_sec = 20 # long\n\n[mcp_servers.covey.env]\n'
        'COVEY_AGENT = "codex"\nCOVEY_GRANT = "cvy_old"\n\n[tail]\na = 1\n'
    )
    after = place.put(CLIENTS["codex"], before, goal("codex"))
    assert place.find(CLIENTS["codex"], after) == {
        "command": COMMAND,
        "args": ["mcp"],
        "startup_timeout_sec": 20,
        "env": {"COVEY_AGENT": "codex"},
    }
    assert 'model = "x"   # odd spacing' in after
    assert "20 # long" in after
    assert tomllib.loads(after)["tail"] == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "mcp_servers = {}\n",
        'mcp_servers = { a = { command = "x" } }\n',
        "[[mcp_servers]]\na = 1\n",
        "mcp_servers = 3\n",
        "[mcp_servers]\ncovey = 3\n",
        "a = \n",
        "a = 1\na = 2\n",
    ],
)
def test_toml_in_which_no_table_can_stand_is_left_alone(text: str) -> None:
    with pytest.raises(place.PlaceError):
        place.put(CLIENTS["codex"], text, goal("codex"))


def test_toml_written_by_the_client_itself_is_taken_out() -> None:
    before = '[a]\nb = 1\n\n[mcp_servers.covey]\ncommand = "/x"\nargs = ["mcp"]\n\n[c]\nd = 2\n'
    after = toml.remove(before, ["mcp_servers", "covey"], "\0")
    assert tomllib.loads(after) == {"a": {"b": 1}, "c": {"d": 2}}


# Files.


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "mcp.json"
    real.parent.mkdir()
    real.write_text("{}")
    real.chmod(0o640)
    link = tmp_path / "mcp.json"
    link.symlink_to(real)
    files.replace(files.read(str(link)), b'{"a":1}')
    assert link.is_symlink()
    assert real.read_text() == '{"a":1}'
    assert real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in real.parent.iterdir()] == ["mcp.json"]


def test_a_link_that_leads_nowhere_gets_its_file(tmp_path: Path) -> None:
    link = tmp_path / "mcp.json"
    link.symlink_to(tmp_path / "later" / "mcp.json")
    files.replace(files.read(str(link)), b"{}")
    assert link.is_symlink()
    assert (tmp_path / "later" / "mcp.json").stat().st_mode & 0o777 == 0o600


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "mcp.json"
    target.write_text("{}")
    target.chmod(0o444)
    with pytest.raises(files.FileError, match="read only"):
        files.replace(files.read(str(target)), b"[]")
    assert target.read_text() == "{}"


@pytest.mark.parametrize("change", ["text", "gone", "link"])
def test_a_change_between_reading_and_writing_is_noticed(change: str, tmp_path: Path) -> None:
    target = tmp_path / "mcp.json"
    target.write_text("{}")
    document = files.read(str(target))
    if change == "text":
        target.write_text('{"by": "somebody"}')
    else:
        target.unlink()
    if change == "link":
        (tmp_path / "other").write_text("{}")
        target.symlink_to(tmp_path / "other")
    with pytest.raises(files.FileError, match="meanwhile"):
        files.replace(document, b"ours")
    assert b"ours" not in b"".join(p.read_bytes() for p in tmp_path.iterdir() if p.is_file())


def test_what_is_no_plain_file_or_no_utf8_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(files.FileError):
            files.read(str(tmp_path / name))
    (tmp_path / "latin").write_bytes(b'{"a": "\xe4"}')
    with pytest.raises(files.FileError, match="UTF-8"):
        _ = files.read(str(tmp_path / "latin")).text


# Hooks.


def test_hooks_stand_beside_those_of_others_and_go_alone() -> None:
    before = (
        '{"hooks": {"UserPromptSubmit": [{"hooks": [{"type": "command", "command": "lint"}]}],'
        ' "Stop": []}, "model": "x"}'
    )
    client = CLIENTS["claude-code"]
    after = place.put_hooks(client, before, goal("claude-code"))
    decoded = cast("dict[str, dict[str, list[Json]]]", json.loads(after))
    assert len(decoded["hooks"]["UserPromptSubmit"]) == 2
    assert place.hooks_found(client, after) == {
        event: f"{COMMAND} hook claude-code {event}"
        for event in ("SessionStart", "UserPromptSubmit")
    }
    assert place.take_hooks(client, after, keep=place.hook_depths(before)) == before


def test_a_moved_daemon_updates_its_hooks() -> None:
    client = CLIENTS["claude-code"]
    old = place.put_hooks(client, "", goal("claude-code", "/old place/covey"))
    assert "'/old place/covey' hook" in place.hooks_found(client, old)["SessionStart"]
    new = place.put_hooks(client, old, goal("claude-code"))
    assert "/old place" not in new
    assert len(cast("dict[str, dict[str, list[Json]]]", json.loads(new))["hooks"]) == 2


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("/a/covey hook claude-code SessionStart", "/a/covey"),
        ("env COVEY_HOME=/x '/a b/covey' hook codex SessionStart", "/a b/covey"),
        ("/a/other hook x", ""),
        ("hook", ""),
        ("covey 'unbalanced", ""),
        ("", ""),
    ],
)
def test_whose_hook_a_line_is(line: str, program: str) -> None:
    assert place.program_of(line) == program
