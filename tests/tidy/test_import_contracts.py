"""Each import contract is seen to break when its control adds what it forbids."""

from __future__ import annotations

import shutil
import tomllib
from typing import TYPE_CHECKING

import pytest

from tools import lint

if TYPE_CHECKING:
    from pathlib import Path

ROOT = lint.ROOT
PACKAGES = ("daemon", "p2p", "memory", "federated")

# Contract name (up to its colon): what to add to which module, so that it breaks.
CONTROLS = {
    "house": [
        ("p2p/limits.py", "import memory.model"),
        ("memory/errors.py", "import p2p.errors"),
        ("p2p/limits.py", "import daemon.errors"),
        ("memory/errors.py", "import federated.seams"),
    ],
    "mesh only": [("federated/seams.py", "import memory.model")],
    "never": [
        ("p2p/limits.py", "import pickle"),
        ("memory/errors.py", "import marshal"),
        ("federated/seams.py", "import shelve"),
        ("daemon/errors.py", "import asyncio"),
    ],
    "sans-io": [
        ("p2p/wire/varint.py", "import trio"),
        ("p2p/wire/varint.py", "import socket"),
        ("p2p/replication/record.py", "import time"),
        ("p2p/replication/record.py", "import random"),
        ("p2p/replication/heads.py", "import apsw"),
        # Not by a detour either: the seam's module imports trio.
        ("p2p/replication/heads.py", "import p2p.net.seam"),
    ],
    "pure jobs": [
        ("federated/jobs/state.py", "import time"),
        ("federated/jobs/coordinator.py", "import apsw"),
    ],
    "rooms of rounds": [
        ("federated/rounds/numeric/__init__.py", "import federated.rounds.privacy"),
        ("federated/rounds/training/__init__.py", "import federated.rounds.protocol"),
        ("federated/rounds/privacy/__init__.py", "import federated.rounds.statistics"),
    ],
    "pure rounds": [
        ("federated/rounds/protocol/__init__.py", "import trio"),
        ("federated/rounds/privacy/__init__.py", "import secrets"),
        ("federated/rounds/pool/book.py", "import socket"),
    ],
    "rooms of memory": [
        ("memory/storage/sql.py", "import memory.trust.rules"),
        ("memory/trust/rules.py", "import memory.records.table"),
        ("memory/recall/fuse.py", "import memory.review.desk"),
        ("memory/transfer/export.py", "import memory.erasure.erasing"),
        ("memory/model.py", "import memory.storage.sql"),
    ],
    "erasing": [
        ("memory/erasure/report.py", "import memory.erasure.choosing"),
        ("memory/erasure/choosing.py", "import memory.erasure.proving"),
        ("memory/erasure/proving.py", "import memory.erasure.erasing"),
    ],
    "pure memory": [
        ("memory/model.py", "import trio"),
        ("memory/model.py", "import apsw"),
        ("memory/model.py", "import time"),
    ],
}


def contract_names() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


@pytest.fixture(scope="module")
def copied_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and their contracts, in a folder where they may be broken."""
    root = tmp_path_factory.mktemp("contracts")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


def test_every_contract_has_a_control() -> None:
    assert [name.partition(":")[0] for name in contract_names()] == list(CONTROLS)


@pytest.mark.parametrize(
    ("contract", "module", "offence"),
    [(name, *control) for name, controls in CONTROLS.items() for control in controls],
)
def test_control_a_forbidden_import_breaks_its_contract(
    copied_tree: Path, contract: str, module: str, offence: str
) -> None:
    path = copied_tree / module
    original = path.read_text("utf-8")
    path.write_text(f"{original}\n{offence}\n")
    try:
        result = lint.imports(copied_tree)
    finally:
        path.write_text(original)
    assert not result.ok
    broken = [line for line in result.output.splitlines() if "BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), result.output


def test_every_pure_module_is_under_the_contract_that_keeps_it_pure() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    covered = {
        module
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["name"].startswith(("sans-io", "pure memory", "pure jobs", "pure rounds"))
        for module in contract["source_modules"]
    }
    # Named pure by docs/decisions/0003-determinism.md; the later ones join when they are written.
    pure = [
        *("p2p.wire", "p2p.dht.kademlia", "p2p.replication", "p2p.rpc_frames"),
        *(
            "memory.bodies",
            "memory.recall.fuse",
            "memory.recall.structure",
            "memory.trust.rules",
            "memory.relations.dedupe",
        ),
        *("memory.erasure.lifecycle", "memory.rank", "memory.model"),
        *("federated.jobs.state", "federated.rounds.state"),
    ]
    for module in pure:
        path = ROOT / module.replace(".", "/")
        if path.is_dir() or path.with_suffix(".py").exists():
            assert module in covered, f"{module} exists: add it to its contract in pyproject.toml"
