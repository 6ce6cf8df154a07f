"""Daemons with the embedder: it works, it is altered, it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from memory.embedding.embedder import MODEL_PACKAGE, missing_libraries
from tests.helpers.daemons import ROOT, Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.json_types import Json

pytestmark = pytest.mark.skipif(bool(missing_libraries()), reason="the extra is not installed")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "node")
    yield made
    made.stop()


def embedding(home: Home) -> dict[str, Json]:
    """What the daemon says of its vectors."""
    status = cast("dict[str, Json]", home.json("status"))
    memory = cast("dict[str, Json]", status["memory"])
    return cast("dict[str, Json]", memory["embedding"])


@pytest.mark.slow
def test_vectors_are_made_kept_and_reported(home: Home) -> None:
    home.up(COVEY_MEMORY__EMBEDDER="minilm")
    home.ok("remember", "the staging database listens on port 5433")
    wait_until("a vector", lambda: embedding(home)["vectors"] == 1)
    # Which of the two is the processor's matter.
    assert embedding(home)["model"] in {"minilm-i8@8199be6f", "minilm@8199be6f"}
    assert "1 of 1 chunks have a vector" in home.ok("status")
    home.kill()
    home.up(COVEY_MEMORY__EMBEDDER="minilm")
    wait_until("the vectors", lambda: embedding(home)["state"] == "ready")
    assert (embedding(home)["vectors"], embedding(home)["backlog"]) == (1, 0)
    checks = home.run("doctor", "store", env={"COVEY_MEMORY__EMBEDDER": "minilm"}).stdout
    assert "MiniLM int8, 8199be6f" in checks


def test_an_altered_model_is_reported_and_words_go_on(home: Home, tmp_path: Path) -> None:
    fake = tmp_path / "fake" / MODEL_PACKAGE
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "model.onnx").write_bytes(b"not the published model")
    found_first = {"PYTHONPATH": f"{fake.parent}:{ROOT}", "COVEY_MEMORY__EMBEDDER": "auto"}
    home.up(**found_first)
    home.ok("remember", "the staging database listens on port 5433")
    wait_until("the check", lambda: embedding(home)["state"] == "failed")
    assert home.texts("staging port") == ["the staging database listens on port 5433"]
    assert "is not the published model" in home.ok("status")
    doctor = home.run("doctor", "store", env=found_first)
    assert "covey[embed]" in doctor.stdout
    assert doctor.returncode != 0


@pytest.mark.slow
def test_without_the_extra_auto_hints_and_minilm_does_not_start(home: Home, tmp_path: Path) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    hidden = {"PYTHONPATH": f"{hiding}:{ROOT}"}
    refused = home.run("up", env={**hidden, "COVEY_MEMORY__EMBEDDER": "minilm"})
    assert refused.returncode == 78
    assert "[memory] embedder" in refused.stderr
    assert "covey[embed]" in refused.stderr
    assert home.pid is None
    home.up(**hidden, COVEY_MEMORY__EMBEDDER="auto")
    home.ok("remember", "the staging database listens on port 5433")
    status = home.ok("status")
    assert "Semantic recall is off: install covey[embed]" in status
    assert "ok" in status.splitlines()[0]
    assert home.texts("staging port") == ["the staging database listens on port 5433"]


def test_a_daemon_without_an_embedder_loads_neither_numpy_nor_the_runtime(home: Home) -> None:
    pid = home.up()
    home.ok("remember", "the staging database listens on port 5433")
    assert home.texts("staging port")
    if sys.platform == "linux":
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" not in mapped
        assert "numpy" not in mapped
