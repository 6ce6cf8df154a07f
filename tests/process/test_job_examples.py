"""The examples of jobs run, on machines of their own, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 170
"""Ends a hang, decides nothing."""


def run(name: str, *words: str, **more: str) -> str:
    """Run an example to its end; what it printed."""
    with tempfile.TemporaryDirectory(prefix="jx-") as folder:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / name), *words],
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": folder,
                "TMPDIR": folder,
                "PYTHONPATH": str(ROOT),
                **more,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(Path(folder).iterdir()), "files are left"
        assert not processes_of(folder), "processes are left"
    return done.stdout


def processes_of(folder: str) -> list[str]:
    """Processes whose home is below a folder, where the system says."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = path.read_bytes()
        except OSError:
            continue
        if f"TMPDIR={folder}".encode() in environ.split(b"\0"):
            found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_table_is_filled_from_500_documents_though_a_machine_dies() -> None:
    said = run("wide_search.py")
    assert "attic is killed" in said
    assert "done: 375 rows of 500" in said
    assert "125 gaps: {'unknown_city': 125}" in said
    assert "done: 500 rows of 500" in said
    assert "500 companies" in said


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_words_are_counted_where_the_files_lie() -> None:
    said = run("wordcount_files.py")
    assert "12 files on 3 machines" in said
    assert "done: files counted by machine {'attic': 4, 'cellar': 4, 'desk': 4}" in said
    table = said.partition("word     times\n")[2].splitlines()
    assert len(table) == 21
    assert table[0].startswith("the ")
    assert "a count on one machine says the same: yes" in said


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_question_goes_to_every_memory_and_who_wrote_it_is_surest() -> None:
    said = run("ask_peers.py")
    assert "'which node version': 3 of 3 machines answered" in said
    surest = said.splitlines()[1:3]
    assert all(line.split()[1:4] == ["trusts", "it", "1.00:"] for line in surest), said
    assert {line.split()[0] for line in surest} == {"ada", "ben"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_frequent_words_of_four_people_are_found_without_reading_any(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    # Far enough apart for the noise: 10,000 of them, then 6,000, then 2,000.
    text.write_text("apple " * 2500 + "bread " * 1500 + "cheese dates eggs flour " * 500)
    said = run("top_words.py", str(text), "-k", "2", "--epsilon", "6")
    assert "24,000 words of 4 people, each record reported once, with noise of its own" in said
    assert "2 of 2 are right, at epsilon 6" in said


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_liars_of_ten_are_caught_and_every_value_is_right() -> None:
    said = run("liars.py")
    assert "magpie is caught" in said
    assert "jackdaw is caught" in said
    assert "done: 400 of 400 values are right" in said
    assert "level 3 of 3" in said
    assert "says something else" in said


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_moods_are_those_that_two_models_agree_on() -> None:
    said = run("sentiment_llm.py")
    moods = [line.split()[:4] for line in said.splitlines() if line.startswith("  ")]
    assert moods == [
        ["Berg", "good", "level", "2"],
        ["Dahl", "bad", "level", "2"],
        ["Ek", "neutral", "level", "2"],
        ["Falk", "bad", "level", "2"],
        ["Gran", "good", "level", "2"],
        ["Holm", "bad", "level", "2"],
    ]
    assert "done: 6 of 6 letters judged" in said


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_function_that_comes_with_the_job_computes_rows_and_reads_no_file() -> None:
    said = run("expr_map.py")
    assert "done: 40 years" in said
    assert "2000 is a leap year and begins on a Saturday" in said
    assert said.count("is a leap year") == 10
    assert "a function that opens a file: failed, exception, None" in said


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_engine_gives_the_same_bytes() -> None:
    lines = run("engines.py").splitlines()
    assert lines[0].startswith("local: done, 400 rows by ['desk'], ")
    assert lines[1].startswith("peers: done, 400 rows by ")
    assert lines[2:] == ["all the same: yes"]


def test_without_the_extra_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pydantic_monty'] = None\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "expr_map.py")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'covey[expr]'" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process tells its environment")
def test_control_a_process_left_behind_is_found(tmp_path: Path) -> None:
    left = subprocess.Popen(
        ["cat"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # Only who runs has an environment: a moment after it was begun it is still empty.
        assert left.stdin is not None
        assert left.stdout is not None
        print("here", file=left.stdin, flush=True)
        assert left.stdout.readline() == "here\n"
        assert processes_of(str(tmp_path)) == [str(left.pid)]
    finally:
        left.kill()
        left.communicate()
