"""`files.list@1` and `files.wordcount@1`: files of folders that the operator named.

A row names a root and either one file (`path`) or several (`pattern`), never a folder of its own
choice: {"root": "notes", "pattern": "**/*.md"}. How paths are opened: `beneath`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.handlers.beneath import Found, Refusal, Root
from federated.jobs.handlers.builtin import count_words, sorted_pairs
from federated.jobs.handlers.threads import offload_stoppable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federated.jobs.handlers.base import Batch, BatchRow, Handler, TaskCtx
    from federated.jobs.types import Row, RowOut

    _Answer: TypeAlias = Callable[[Root, Row, "_Task"], Row]

FILE_BYTES_MAX: Final = 16 * 2**20
# All files of one row of files.wordcount: ten seconds of counting or so.
ROW_BYTES_READ_MAX: Final = 64 * 2**20
# Files of one answer of files.list; `after` asks for those behind.
FILES_LISTED_MAX: Final = 1000
# Characters counted between two looks at whether the task was cancelled: some 20 ms.
_SLICE_CHARS: Final = 1 << 18
# What an entry of an answer takes beside its path; and what is left for the rest of the answer.
_ENTRY_BYTES: Final = 48
_ANSWER_BYTES: Final = 256


class FilesHandler:
    """A handler of files: a row's root, and one trip to a thread a task.

    Args:
        roots: {name: folder}.
        info: what it says of itself.
        answer: answers one row of a root, or raises why there is no answer.
    """

    def __init__(self, roots: Mapping[str, str], info: HandlerInfo, answer: _Answer) -> None:
        self.info: Final = info
        self._roots = {name: Root(path) for name, path in roots.items()}
        self._answer = answer

    async def run(self, batch: Batch, ctx: TaskCtx) -> Sequence[RowOut]:
        """Answer the rows; a row that names no file of ours is missing, with the reason."""
        out_bytes = ctx.limits.out_bytes

        def compute(stopped: Callable[[], bool]) -> list[RowOut]:
            answers: list[RowOut] = []
            for item in batch.rows:
                if stopped():
                    break
                answers.append(self._one(item, _Task(out_bytes, stopped)))
            return answers

        return await offload_stoppable(ctx.offload, compute)

    async def aclose(self) -> None:
        """Nothing is kept between tasks."""

    def _one(self, item: BatchRow, task: _Task) -> RowOut:
        try:
            return item.k, self._answer(self._root(item.row), item.row, task), ""
        except Refusal as refusal:
            return item.k, None, refusal.reason

    def _root(self, row: Row) -> Root:
        name = row.get("root")
        root = self._roots.get(name) if isinstance(name, str) else None
        if root is None:
            raise Refusal("unknown_root")
        return root


class _Task(NamedTuple):
    """Around a row: bytes that its answer may have, and whether to give up."""

    out_bytes: int
    stopped: Callable[[], bool]


def files_list(roots: Mapping[str, str]) -> FilesHandler:
    """`files.list@1`: which files a root has.

    Row: {root, path} or {root, pattern, after?}. Answer: {"files": [{"path", "bytes"}, ...],
    "more": whether there are others behind the last, "unnamed": files left out because their
    names are not UTF-8 in NFC}, ascending by path.

    Args:
        roots: {name: folder}.
    """
    summary = "lists files of a folder that this node's operator named"
    return FilesHandler(roots, _info("files.list@1", summary), _list)


def files_wordcount(roots: Mapping[str, str]) -> FilesHandler:
    """`files.wordcount@1`: {"pairs": [[word, n], ...]} of one file or of all that match.

    Row: {root, path} or {root, pattern}. Files are UTF-8; bytes that are not end a word. One with
    a NUL is no text: alone it is `missing: not_text`, among others it is left out.

    Args:
        roots: {name: folder}.
    """
    summary = "counts words in files of a folder that this node's operator named"
    return FilesHandler(roots, _info("files.wordcount@1", summary), _wordcount)


def _info(ident: str, summary: str) -> HandlerInfo:
    return HandlerInfo(id=ident, kind="named", deterministic=True, local=True, summary=summary)


def _list(root: Root, row: Row, task: _Task) -> Row:
    files, unnamed = _chosen(root, row, task.stopped)
    after = row.get("after", "")
    if not isinstance(after, str):
        raise Refusal("bad_row")
    listed: list[object] = []
    left = task.out_bytes - _ANSWER_BYTES
    behind = [file for file in files if file.path > after]
    for file in behind[:FILES_LISTED_MAX]:
        left -= 2 * len(file.path.encode()) + _ENTRY_BYTES
        if left < 0:
            break
        listed.append({"path": file.path, "bytes": file.size_bytes})
    if behind and not listed:
        raise Refusal("too_large")
    return {"files": listed, "more": len(listed) < len(behind), "unnamed": unnamed}


def _wordcount(root: Root, row: Row, task: _Task) -> Row:
    files, _ = _chosen(root, row, task.stopped)
    alone = "path" in row
    left = ROW_BYTES_READ_MAX
    counts: Counter[str] = Counter()
    for file in files:
        data = _read_one(root, file, alone=alone)
        left -= len(data)
        if left < 0:
            raise Refusal("too_large")
        _count(data.decode("utf-8", "replace"), counts, task.stopped)
    if sum(len(word.encode()) + 8 for word in counts) > task.out_bytes:
        raise Refusal("too_large")
    return {"pairs": sorted_pairs(counts)}


def files_handlers(roots: Mapping[str, str]) -> Sequence[Handler]:
    """What a node offers once a root is named; nothing without one."""
    return (files_list(roots), files_wordcount(roots)) if roots else ()


def _chosen(root: Root, row: Row, stopped: Callable[[], bool]) -> tuple[list[Found], int]:
    path, pattern = row.get("path"), row.get("pattern")
    if isinstance(path, str) and pattern is None:
        return [root.look(path)], 0
    if isinstance(pattern, str) and path is None:
        return root.find(pattern, stopped=stopped)
    raise Refusal("bad_row")


def _read_one(root: Root, file: Found, *, alone: bool) -> bytes:
    """The bytes of a text; none for one among several that has gone or is no text."""
    try:
        data = root.read(file.path, bytes_max=FILE_BYTES_MAX)
    except Refusal as refusal:
        if alone or refusal.reason == "too_large":
            raise
        return b""
    if b"\0" in data:
        if alone:
            raise Refusal("not_text")
        return b""
    return data


def _count(text: str, counts: Counter[str], stopped: Callable[[], bool]) -> None:
    """Count slice by slice, cut at a space so that no word is."""
    start = 0
    while start < len(text):
        if stopped():
            raise Refusal("cancelled")
        end = min(len(text), start + _SLICE_CHARS)
        while end < len(text) and not text[end].isspace():
            end += 1
        count_words(text[start:end], counts)
        start = end
