"""Runs a client's own command: words for the kernel, no shell, a time limit, its error told.

No token is ever among the words: the relay reads it from a file of ours, so it stands in no list of
processes and no history.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIMIT_S: Final = 60.0
"""A client that takes longer asks something that nobody answers; node starts in 1 to 5 s."""

TOLD_CHARS_MAX: Final = 300
"""Of a failed command's output, its end: guess, a sentence or two."""


class OwnCommandError(Exception):
    """The client's command failed; the message has its last words."""


def program(template: str, environ: Mapping[str, str]) -> str:
    """Absolute path of the program that a template names; empty if it is not installed."""
    if not template:
        return ""
    found = shutil.which(template.split(maxsplit=1)[0], path=environ.get("PATH"))
    return os.path.abspath(found) if found else ""


def run(words: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run a command to its end.

    Args:
        words: the program's absolute path and its arguments.
        environ: its environment; our own token is left out.

    Raises:
        OwnCommandError: it failed, took too long or could not be started.
    """
    clean = {name: value for name, value in environ.items() if name != "COVEY_GRANT"}
    try:
        done = subprocess.run(  # noqa: S603 - absolute path, words of ours, no shell
            words,
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OwnCommandError(f"it did not end within {LIMIT_S:.0f} s") from None
    except OSError as error:
        raise OwnCommandError(f"it cannot be started: {error.strerror}") from None
    if done.returncode:
        told = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        words_told = " ".join(told.split())[-TOLD_CHARS_MAX:]
        raise OwnCommandError(f"exit code {done.returncode}: {words_told or 'it said nothing'}")
