"""What `covey connect` and `covey disconnect` do to one file, planned first and then done.

A step is planned from the file as it is; the person sees it and agrees; then it is done, if the
file is still the same. Whatever happened meanwhile, either the whole step is done or nothing of it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from daemon.connect import files, own, place
from daemon.connect.records import Record, digest, is_untouched
from daemon.connect.render import own_argv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.connect.clients import Client
    from daemon.connect.files import Document
    from daemon.connect.place import Goal
    from daemon.connect.records import Records


class Step(NamedTuple):
    """A change of one file.

    Attributes:
        client: whose.
        what: our server, or our hooks.
        document: the file as it was read.
        after: its bytes afterwards, as an edit makes them; None: the file goes.
        argv: the client's own command, when that is to do it; empty for an edit.
        record: what to keep about it (of a removal: what was kept).
        exact: of a removal: `after` is what was there before us, to the byte.
        way_back: of an addition: whether the bytes from before us are in `document` (save), were
            kept by an earlier one (kept), or are not known (lost).
    """

    client: Client
    what: Literal["server", "hooks"]
    document: Document
    after: bytes | None
    argv: list[str]
    record: Record | None
    exact: bool = False
    way_back: Literal["save", "kept", "lost"] = "save"

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.argv) or self.after != self.document.data

    def shown(self) -> str:
        """For people: the command, or the difference."""
        if self.argv:
            import shlex

            return shlex.join(self.argv) + "\n"
        after = (self.after or b"").decode("utf-8", "replace")
        return files.diff(self.document.path, self.document.text, after)


def plan_connect(
    client: Client,
    what: Literal["server", "hooks"],
    path: str,
    goal: Goal,
    *,
    project: bool,
    records: Records,
    environ: Mapping[str, str],
) -> Step:
    """Plan to put our server, or our hooks, into a file.

    Raises:
        FileError: the file cannot be read or written.
        PlaceError: the entry cannot be put there.
    """
    document = files.read(path)
    text = document.text
    if what == "hooks":
        edited, keep = place.put_hooks(client, text, goal), place.hook_depths(text)
    else:
        edited, keep = place.put(client, text, goal), {"server": place.depth_of(client, text)}
    after = edited.encode()
    if document.data is not None or edited:
        files.check_writable(document)
    old = records.find(client.name, what, path)
    inside = _is_inside(client, what, text)
    way_back: Literal["save", "kept", "lost"] = "save"
    if inside:
        way_back = "kept" if old is not None and is_untouched(old, document) else "lost"
    elif old is not None:
        # Somebody took ours out by hand: we begin anew.
        old = None
    folder = os.path.dirname(document.real)
    record = Record(
        client=client.name,
        agent=goal.env["COVEY_AGENT"],
        what=what,
        path=path,
        project=project,
        # Lost bytes are looked for and not found: never is a file taken away that others wrote.
        existed=old.existed if old and way_back == "kept" else document.data is not None,
        folder_existed=old.folder_existed if old else os.path.isdir(folder),
        written=digest(after),
        keep=keep if old is None else old.keep,
        command=goal.command,
        env=goal.env,
    )
    fresh = what == "server" and not project and not inside
    program = own.program(client.command, environ) if fresh else ""
    argv: list[str] = []
    if program:
        argv = own_argv(client.command, client, command=goal.command, env=goal.env)
        argv[0] = program
    return Step(client, what, document, after, argv, record, way_back=way_back)


def _is_inside(client: Client, what: Literal["server", "hooks"], text: str) -> bool:
    if what == "hooks":
        return bool(place.hooks_found(client, text))
    return place.find(client, text) is not None


def do_connect(step: Step, records: Records, environ: Mapping[str, str]) -> str:
    """Do it.

    Returns:
        A remark for the person, such as why the client's own command was not used; often empty.

    Raises:
        FileError: the file changed meanwhile or cannot be written; nothing was done.
    """
    record = step.record
    assert record is not None
    if step.way_back == "save":
        records.save(record, step.document.data)
    elif step.way_back == "lost":
        records.forget_bytes(record)
    try:
        return _write(step, record, records, environ)
    except (files.FileError, place.PlaceError):
        if step.way_back == "save":
            records.forget(record)
        raise


def _write(step: Step, record: Record, records: Records, environ: Mapping[str, str]) -> str:
    remark = ""
    if step.argv:
        try:
            own.run(step.argv, environ)
        except own.OwnCommandError as error:
            remark = f"{step.argv[0]} failed ({error}); the file was edited instead"
        else:
            written = files.read(record.path)
            goal = place.Goal(record.command, record.env)
            if _holds(step.client, written, goal):
                mark = digest(written.data or b"") if _only_ours(step, written) else ""
                records.save(record._replace(written=mark), None)
                return ""
            remark = f"{step.argv[0]} left no entry in {record.path}; the file was edited instead"
        # The command may have written something all the same: plan from what is there now.
        return _edit_after_all(step, records, remark)
    files.replace(step.document, step.after)
    records.save(record, None)
    return remark


def _edit_after_all(step: Step, records: Records, remark: str) -> str:
    record = step.record
    assert record is not None
    document = files.read(record.path)
    goal = place.Goal(record.command, record.env)
    after = place.put(step.client, document.text, goal).encode()
    files.replace(document, after)
    # What a failed command left behind is its client's: then ours alone is taken out one day.
    alone = document.data == step.document.data
    records.save(record._replace(written=digest(after) if alone else ""), None)
    return remark


def _only_ours(step: Step, written: Document) -> bool:
    """Whether the client's command added our entry and nothing else, such as its first-run notes.

    Then its file before the command is the way back; else the entry alone is taken out.
    """
    text = _taken_out(step.client, step.what, written.text, step.record)
    return place.decode(step.client, text) == place.decode(step.client, step.document.text)


def _holds(client: Client, document: Document, goal: Goal) -> bool:
    try:
        return place.is_current(place.find(client, document.text), goal)
    except (place.PlaceError, files.FileError):
        return False


def plan_disconnect(
    client: Client,
    what: Literal["server", "hooks"],
    path: str,
    *,
    project: bool,
    records: Records,
    environ: Mapping[str, str],
) -> Step:
    """Plan to take our server, or our hooks, out of a file.

    Raises:
        FileError: the file cannot be read or written.
        PlaceError: the entry cannot be taken out.
    """
    document = files.read(path)
    record = records.find(client.name, what, path)
    if document.data is None:
        return Step(client, what, document, None, [], record)
    if record is not None and is_untouched(record, document):
        try:
            return Step(client, what, document, records.before(record), [], record, exact=True)
        except FileNotFoundError:
            pass  # others wrote between two of ours
    edited = _taken_out(client, what, document.text, record)
    argv: list[str] = []
    if what == "server" and not project and edited != document.text:
        program = own.program(client.removal, environ)
        if program:
            argv = [program, *client.removal.split()[1:]]
    return Step(client, what, document, edited.encode(), argv, record)


def _taken_out(
    client: Client, what: Literal["server", "hooks"], text: str, record: Record | None
) -> str:
    keep = record.keep if record is not None else {}
    if what == "hooks":
        return place.take_hooks(client, text, keep=keep)
    if place.find(client, text) is None:
        return text
    known = record is not None and record.command
    goal = place.Goal(record.command, record.env) if known and record else place.Goal("", {})
    return place.take(client, text, goal, keep=keep.get("server", 1))


def do_disconnect(step: Step, records: Records, environ: Mapping[str, str]) -> str:
    """Do it, and forget what was kept.

    Returns:
        A remark for the person, often empty.

    Raises:
        FileError: the file changed meanwhile or cannot be written; nothing was done.
        PlaceError: as `plan_disconnect`.
    """
    remark = ""
    document, after = step.document, step.after
    if step.argv:
        try:
            own.run(step.argv, environ)
        except own.OwnCommandError as error:
            remark = f"{step.argv[0]} failed ({error}); the file was edited instead"
        document = files.read(document.path)
        edited = _taken_out(step.client, step.what, document.text, step.record)
        after = None if document.data is None else edited.encode()
    if after != document.data:
        files.replace(document, after)
        if after is None and step.record is not None and not step.record.folder_existed:
            _remove_empty_folder(document)
    if step.record is not None:
        records.forget(step.record)
    return remark


def _remove_empty_folder(document: Document) -> None:
    """A folder that was made for our file alone goes with it."""
    with contextlib.suppress(OSError):  # it holds something else
        os.rmdir(os.path.dirname(document.real))
