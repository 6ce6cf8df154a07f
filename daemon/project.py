"""What project a folder belongs to: the default scope of what is remembered there.

Light on purpose: the relay and the command line import it on every start, so only small modules
here.
Source: docs/specs/local-rpc.md (memory scope).
"""

from __future__ import annotations

import os
import stat

NAME_CHARS_MAX = 64
FILE_BYTES_MAX = 256 * 1024
DEPTH_MAX = 64
ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")


def project_of(folder: str, home: str | None = None) -> str:
    """The project's name as a scope.

    Args:
        folder: where the caller works.
        home: the user's home folder, which is no project; default from the environment.

    Returns:
        Last part of git's `origin`, else the name of the repository's folder, else of `folder`;
        empty for the root, the home folder and names without a usable character.
    """
    folder = os.path.realpath(folder)
    root = _repository(folder)
    if root is not None:
        origin = _origin(root)
        if origin:
            return origin
        return scope_name(os.path.basename(root))
    if home is None:
        home = os.path.expanduser("~")
    if folder == os.path.realpath(home):
        return ""
    return scope_name(os.path.basename(folder))


def scope_name(text: str) -> str:
    """A name as a scope: lower case `[a-z0-9._-]`, at most 64 characters; empty if none is left."""
    name = "".join(char if char in ALLOWED else "-" for char in text.lower())
    return name.strip("-.")[:NAME_CHARS_MAX]


def _repository(folder: str) -> str | None:
    """The nearest folder upwards that holds `.git`."""
    for _ in range(DEPTH_MAX):
        if os.path.lexists(os.path.join(folder, ".git")):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return None


def _origin(root: str) -> str:
    """Last part of the address of `origin`, without `.git`; empty when there is none."""
    url = ""
    section = ""
    for line in _read(os.path.join(_git_folder(root), "config")).splitlines():
        line = line.strip()  # noqa: PLW2901 - the line without indentation
        if line.startswith("["):
            section = line
        elif section == '[remote "origin"]' and line.partition("=")[0].strip() == "url":
            url = line.partition("=")[2].strip()
    # Both `https://host/owner/name.git` and `host:owner/name`.
    last = url.rstrip("/").replace(":", "/").rpartition("/")[2]
    return scope_name(last.removesuffix(".git"))


def _git_folder(root: str) -> str:
    """Where the configuration is: `.git`, or what a work tree's `.git` file leads to."""
    folder = os.path.join(root, ".git")
    if os.path.isdir(folder):
        return folder
    target = _read(folder).removeprefix("gitdir:").strip()
    folder = os.path.join(root, target)
    common = _read(os.path.join(folder, "commondir")).strip()
    return os.path.join(folder, common) if common else folder


def _read(path: str) -> str:
    """The beginning of a regular file; empty for anything else.

    A repository comes from others: a pipe by one of these names would make us wait for ever, and a
    device might do anything. It is looked at, then opened without waiting and looked at again: its
    owner may exchange it in between.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ""
        return os.read(handle, FILE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(handle)
