"""The helper that runs a document's commands notices a wrong status and a wrong output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.tour import check_document, matches, steps_of

if TYPE_CHECKING:
    from pathlib import Path

ENV = {"PATH": "/usr/bin:/bin"}


def block(text: str) -> str:
    return f"Before.\n\n```console\n{text}```\n\nAfter.\n"


def test_commands_and_what_they_print_are_told_apart() -> None:
    steps = steps_of(block("$ one \\\n    two\nout 1\nout 2\n$ three\n"))
    assert [step.command for step in steps] == ["one \\\n    two", "three"]
    assert [step.expected for step in steps] == [("out 1", "out 2"), ()]


def test_other_blocks_are_not_run() -> None:
    assert steps_of("```sh\n$ rm everything\n```\n```\n$ nothing\n```\n") == []


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        (("a",), "a\n", True),
        (("a",), "b\n", False),
        (("a",), "a\nb\n", False),
        (("a ... c",), "a 12 ms c\n", True),
        (("a ... c",), "a\nc\n", False),
        (("a", "...", "c"), "a\nb\nb\nc\n", True),
        (("a", "...", "c"), "a\nc\n", True),
        (("a", "...", "c"), "a\nb\n", False),
        (("(1)...",), "(1) x\n", True),
        ((), "anything\n", True),
    ],
)
def test_dots_stand_for_what_may_vary(
    expected: tuple[str, ...], output: str, *, same: bool
) -> None:
    assert matches(expected, output) is same


def test_a_true_document_passes_and_keeps_variables_between_blocks(tmp_path: Path) -> None:
    text = block("$ name=covey\n") + block("$ echo hello $name\nhello ...\n")
    outcomes = check_document(text, folder=tmp_path, env=ENV)
    assert outcomes[-1].output == "hello covey\n"


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)false.*status 1"):
        check_document(block("$ false\n$ true\n"), folder=tmp_path, env=ENV)


def test_a_different_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)printed:\nyes.*expected:\nno"):
        check_document(block("$ echo yes\nno\n"), folder=tmp_path, env=ENV)


def test_a_command_that_ends_the_shell_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="did not end"):
        check_document(block("$ exit 0\n$ true\n"), folder=tmp_path, env=ENV)


def test_a_document_without_commands_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no command"):
        check_document("# Title\n", folder=tmp_path, env=ENV)


def test_nothing_of_this_process_environment_is_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVEY_HOME", "elsewhere")
    check_document(block("$ echo [$COVEY_HOME]\n[]\n"), folder=tmp_path, env=ENV)
