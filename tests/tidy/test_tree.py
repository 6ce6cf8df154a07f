"""The tree speaks of Covey alone, repeats nowhere where it was made, and holds nothing dead."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import grimp

from daemon.cli.main import COMMANDS
from tools import lint

if TYPE_CHECKING:
    from pathlib import Path

ROOT = lint.ROOT

# The patterns are put together from pieces, so that this file does not match itself.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:" + "|".join(("wor" + "k", "roo" + "t")) + r")/[\w.]")
# Covey's own fallback for its socket is the one name that the product makes there itself.
TEMPORARY_PATHS = re.compile(r"(?<![\w.$}])/tm" + r"p/(?!covey-[{<])[\w.]")
REGISTRY_HOSTS = re.compile(
    "|".join(
        (
            r"pyp" + r"i\.org",
            r"python" + r"hosted\.org",
            r"registry\.(?:npm" + r"js|yarn" + r"pkg)",
            r"deb\." + r"debian\.org",
            r"crates" + r"\.io",
        )
    )
)
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
NUMBERED_ISSUES = re.compile(r"\bissue #?\d+\b", re.IGNORECASE)
RULES = {
    "a path of some machine": MACHINE_PATHS,
    "a path of some machine's temporary folder": TEMPORARY_PATHS,
    "a package registry's host": REGISTRY_HOSTS,
    "unfinished work": UNFINISHED,
    "a numbered issue": NUMBERED_ISSUES,
}
BINARY_OR_FOREIGN = {".png", ".gz", ".bin", ".whl"}


def tracked_files() -> list[Path]:
    """Files under version control; in an unpacked archive, all that the checkers look at."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=30,
    )
    if listed.returncode != 0:
        return lint.python_files()
    names = listed.stdout.decode("utf-8").split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    """(path relative to the root, text) of every text file of the tree."""
    return [
        (str(path.relative_to(ROOT)), path.read_text("utf-8", "replace"))
        for path in tracked_files()
        if path.suffix not in BINARY_OR_FOREIGN
    ]


def offences(files: list[tuple[str, str]]) -> list[str]:
    """Every line that breaks a rule of this module."""
    return [
        f"{name}:{number}: {rule}: {line.strip()[:100]}"
        for name, text in files
        for number, line in enumerate(text.splitlines(), 1)
        for rule, pattern in RULES.items()
        if pattern.search(line)
    ]


def test_the_tree_names_no_machine_registry_or_unfinished_work() -> None:
    found = offences(texts())
    assert not found, "\n".join(found)


def test_control_each_rule_finds_its_offence() -> None:
    lines = {
        "a path of some machine": "cd /wor" + "k/main",
        "a path of some machine's temporary folder": "open('/tm" + "p/x')",
        "a package registry's host": "https://pyp" + "i.org/simple",
        "unfinished work": "# TO" + "DO later",
        "a numbered issue": "see iss" + "ue 12",
    }
    assert lines.keys() == RULES.keys()
    for rule, line in lines.items():
        assert [rule in offence for offence in offences([("f", line)])] == [True], rule
    harmless = "work/, the root of trust, tmpfs, $HOME/tmp/x, an issue of 12 pages"
    assert not offences([("f", harmless)])


def test_no_file_is_a_leftover() -> None:
    leftovers = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix in {".orig", ".rej", ".bak", ".swp", ".pyc", ".log"}
        or path.name in {".DS_Store", "nohup.out", "core"}
        or (path.suffix == ".py" and path.name != "__init__.py" and path.stat().st_size == 0)
    ]
    assert not leftovers, leftovers


# Doors that nothing imports: each with the reason it is there.
ENTRY_POINTS = {
    "daemon.__main__": "python -m daemon",
    "daemon.cli.main": "the command",
    "daemon.job_client": "jobs from a Python program",
    "daemon.fed_client": "questions from a Python program",
    "daemon.outer_trainer": "training that talks now and then",
    "daemon.host_trainer": "training processes of a machine",
    "federated.jobs.engines": "a room that comes later",
    "federated.migrations": "files that are read by name",
    "federated.rounds.statistics.tap": "baselines, which the benchmark measures",
    "federated.rounds.training.late": "a trainer's late updates, whose driver comes later",
    "federated.rounds.training.local": "rounds in one process: trials, examples, benchmarks",
    "daemon.web": "a room that comes later",
    "p2p.nat": "a room that comes later",
    "memory.storage.migrations": "files that are read by name",
    "memory.storage.behaviour_migrations": "files that are read by name",
    "p2p.net.memory": "the network in memory that simulations run on",
    "p2p.replication.memstore": "the store in memory that simulations run on",
}


def named_commands() -> list[str]:
    """Modules of commands, which the command line imports by name when they are called."""
    modules = {module for group in COMMANDS.values() for module, _ in group.values()}
    return [f"daemon.cli.{module}" for module in sorted(modules - {""})]


def unreachable(graph: grimp.ImportGraph, doors: list[str]) -> set[str]:
    """Modules that no door imports, directly or not. A package is reached with any module in it."""
    reached: set[str] = set()
    waiting = [door for door in doors if door in graph.modules]
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        waiting.extend(graph.find_modules_directly_imported_by(module))
        if "." in module:
            waiting.append(module.rpartition(".")[0])
    return graph.modules - reached


def test_every_module_is_reached_from_the_command_or_a_named_door() -> None:
    graph = grimp.build_graph("daemon", "p2p", "memory", "federated", cache_dir=None)
    dead = sorted(unreachable(graph, [*ENTRY_POINTS, *named_commands()]))
    assert not dead, f"nothing imports {dead}: use them or remove them"


def test_every_named_door_exists() -> None:
    graph = grimp.build_graph("daemon", "p2p", "memory", "federated", cache_dir=None)
    missing = sorted(set(ENTRY_POINTS) - graph.modules)
    assert not missing, missing


def test_every_helper_and_tool_is_used() -> None:
    names = [
        path
        for folder in ("tests/helpers", "tools")
        for path in sorted((ROOT / folder).iterdir())
        if path.is_file() and path.name != "__init__.py"
    ]
    everything = texts()
    unused = []
    for path in names:
        own = str(path.relative_to(ROOT))
        needle = f"{path.parent.name}.{path.stem}" if path.suffix == ".py" else path.name
        alternative = f"from {path.parent.name} import {path.stem}"
        if not any(
            needle in text or alternative in text for name, text in everything if name != own
        ):
            unused.append(own)
    assert not unused, unused


def test_the_lock_has_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    assert "://" not in lock
    pinned = re.findall(r"^[a-z0-9][\w.-]*==", lock, re.MULTILINE)
    assert len(pinned) > 40
    entries = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "python-daemon==" not in lock, "it also installs a package named daemon"


def test_the_lock_pins_every_requirement_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"]]
    pending = ["all", "bench", "dev"]
    while pending:
        for requirement in extras[pending.pop()]:
            own = re.fullmatch(r"covey\[([a-z,]+)\]", requirement)
            if own:
                pending += own[1].split(",")
            else:
                wanted.append(requirement)
    lock = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    for requirement in wanted:
        name = re.split(r"[<>=!\[ ;]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}==", lock, re.MULTILINE), requirement
