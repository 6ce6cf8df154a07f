"""Log files: one JSON object a line, an event name and fields.

Callers write `log.info("session_closed", extra={"f": {...}})`. Never bodies, queries, tokens,
tickets or keys: a test plants markers in all of them and searches the files. What a remote side can
trigger carries `extra={"remote": True}` too and is written at most ten times a minute per event, so
that a stranger cannot fill the disk.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import traceback
from typing import TYPE_CHECKING, Final

import msgspec
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daemon.config import LogConfig

REMOTE_PER_MINUTE: Final = 10
"""Lines of one event that strangers can cause (daemon.md s.8)."""

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# Severities of syslog(3), which journald reads from a `<N>` prefix.
_SYSLOG: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, "f", None)
    return found if isinstance(found, dict) else {}


class JsonFormatter(logging.Formatter):
    """A record as one JSON line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """`at_ms` (Unix milliseconds), level, logger, event, fields; an exception's traceback."""
        line: dict[str, object] = {
            "at_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "log": record.name.removeprefix("covey."),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = format_exception(record.exc_info[1])
        try:
            return _ENCODER.encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate, as a damaged file name has
            return json.dumps(line, default=str, separators=(",", ":"))


class LogFile(logging.handlers.RotatingFileHandler):
    """A rotating file that counts what it wrote instead of asking the disk at each line.

    The daemon is its only writer, and a line is written for every request.
    """

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, after a rotation when it would not fit."""
        try:
            line = self.format(record) + self.terminator
            size = len(line.encode(errors="backslashreplace"))
            if self.stream is None:
                self.stream = self._open()
            if 0 < self.maxBytes < self.stream.tell() + size:
                self.doRollover()
            self.stream.write(line)
            self.flush()
        except Exception:  # noqa: BLE001 - as logging does: a full disk must not end the caller
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """A record for a person at a terminal."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """`12:30:01 info     rpc: event key=value`."""
        time = self.formatTime(record, "%H:%M:%S")
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        name = record.name.removeprefix("covey.")
        text = f"{time} {record.levelname.lower():8}{name}: {record.getMessage()} {fields}".rstrip()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + format_exception(record.exc_info[1])
        return text


class JournalFormatter(JsonFormatter):
    """JSON with the severity prefix that journald takes off."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """`<6>{...}`."""
        return f"<{_SYSLOG.get(record.levelname, 6)}>{super().format(record)}"


def format_exception(error: BaseException) -> str:
    """Types and places of an exception, without the texts of foreign ones.

    A library's message may quote what it was working on: a query, a body. Ours do not.
    """
    lines = [
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-12:]
    ]
    module = type(error).__module__
    own = module.split(".")[0] in {"daemon", "p2p", "memory", "federated"} or isinstance(
        error, AssertionError
    )
    text = f": {error}" if own else ""
    parts = [" < ".join(reversed(lines)), f"{module}.{type(error).__qualname__}{text}"]
    if isinstance(error, BaseExceptionGroup):
        parts += [format_exception(inner) for inner in error.exceptions[:5]]
    elif error.__cause__ is not None:
        parts.append("caused by " + format_exception(error.__cause__))
    return "\n".join(parts)


class RemoteLimit(logging.Filter):
    """Lets ten lines a minute of each remotely triggered event through.

    The first line of the next minute says in `suppressed` how many were not written.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._seen: dict[str, tuple[float, int]] = {}

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if not getattr(record, "remote", False):
            return True
        key = f"{record.name}/{record.msg}"
        now = self._now()
        start, count = self._seen.get(key, (now, 0))
        if now - start >= 60:
            if count > REMOTE_PER_MINUTE:
                record.f = {**_fields(record), "suppressed": count - REMOTE_PER_MINUTE}
            start, count = now, 0
        self._seen[key] = (start, count + 1)
        return count < REMOTE_PER_MINUTE


def setup(config: LogConfig, folder: str, now: Callable[[], float]) -> None:
    """Send our log to `folder/covey.log`, and to standard error when someone reads it there.

    Args:
        config: level, form, rotation.
        folder: exists, private.
        now: monotonic seconds.
    """
    # Nobody reads these fields; finding them is half the cost of a line. The last one is the switch
    # that the logging documentation names for the search of the caller's file.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001
    root = logging.getLogger("covey")
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.propagate = False
    set_level(config.level)
    before = os.umask(0o077)
    try:
        file = LogFile(
            os.path.join(folder, "covey.log"),
            maxBytes=config.file_bytes,
            backupCount=max(0, config.files - 1),
            encoding="utf-8",
        )
    finally:
        os.umask(before)
    file.setFormatter(JsonFormatter())
    handlers: list[logging.Handler] = [file]
    if (form := _stderr_form(config.format)) is not None:
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(form)
        handlers.append(screen)
    for handler in handlers:
        handler.addFilter(RemoteLimit(now))
        root.addHandler(handler)


def _stderr_form(form: str) -> logging.Formatter | None:
    if os.environ.get("JOURNAL_STREAM"):
        return JournalFormatter()
    if form == "json":
        return JsonFormatter()
    if form == "text" or sys.stderr.isatty():
        return TextFormatter()
    return None


def set_level(level: str) -> None:
    """Least severity that is written: debug, info, warning or error."""
    logging.getLogger("covey").setLevel(_LEVELS[level])
