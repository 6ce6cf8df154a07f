"""Every public exception type becomes an RPC error with code, name, exit code and remedy."""

from __future__ import annotations

import errno
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

import daemon
import memory
import p2p
from daemon import error_map
from daemon.cli.client import CliError, ConnectionLost, NotRunning
from daemon.error_map import to_rpc_error
from daemon.errors import BY_CODE, BY_NAME, ConfigError, RpcError
from daemon.instance import AlreadyRunning
from daemon.methods.fed import ERROR_OF
from daemon.paths import PathsError
from federated.errors import RoundError
from memory.errors import DecodeError as BodyDecodeError
from memory.errors import MemoryStoreError, RefusedError, StoreError
from memory.errors import UsageError as MemoryUsageError
from p2p import errors as p2p_errors
from p2p.identity import KeyFileError
from p2p.replication.events import GroupError
from p2p.replication.sealing import KeyMissing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

SPEC = Path("docs/specs/local-rpc.md")
ROUNDS = Path("docs/specs/rounds.md")

# One row a public type (or reason), with the answer it must become.
ROWS: list[tuple[Exception, str]] = [
    (RpcError("conflict", "x"), "conflict"),
    (ConfigError("x"), "invalid_params"),
    (PathsError("x"), "invalid_params"),
    (p2p_errors.UsageError("x"), "internal"),
    (p2p_errors.PeerError("x"), "aborted"),
    (p2p_errors.DecodeError("x"), "aborted"),
    (p2p_errors.ProtocolError("x"), "aborted"),
    (p2p_errors.EquivocationError("x"), "aborted"),
    (p2p_errors.VersionError("x"), "api_mismatch"),
    (p2p_errors.LimitError("x"), "too_large"),
    (p2p_errors.AuthError("x"), "refused"),
    (p2p_errors.RemoteError(1, "x"), "api_mismatch"),
    (p2p_errors.RemoteError(2, "x"), "refused"),
    (p2p_errors.RemoteError(3, "x"), "forbidden"),
    (p2p_errors.RemoteError(4, "x"), "deadline"),
    (p2p_errors.RemoteError(5, "x"), "cancelled"),
    (p2p_errors.RemoteError(6, "x"), "rate_limited"),
    (p2p_errors.RemoteError(7, "x"), "too_large"),
    (p2p_errors.RemoteError(8, "x"), "aborted"),
    (p2p_errors.RemoteError(9, "x"), "refused"),
    (p2p_errors.RemoteError(10, "x"), "peer_unreachable"),
    (p2p_errors.RemoteError(77, "x"), "aborted"),
    (p2p_errors.TransientError("x"), "aborted"),
    (p2p_errors.Unreachable("x"), "peer_unreachable"),
    (p2p_errors.TimedOut("x"), "deadline"),
    (p2p_errors.Busy("x"), "rate_limited"),
    (p2p_errors.DiskFull("x"), "storage_full"),
    (GroupError("not_permitted", "x"), "forbidden"),
    (GroupError("not_a_member", "x"), "forbidden"),
    (GroupError("unknown_group", "x"), "not_found"),
    (GroupError("unknown_join", "x"), "not_found"),
    (GroupError("expect_failed", "x"), "conflict"),
    (GroupError("ticket_used", "x"), "conflict"),
    (GroupError("already_member", "x"), "conflict"),
    (GroupError("bad_ticket", "x"), "invalid_state"),
    (GroupError("ticket_expired", "x"), "invalid_state"),
    (GroupError("invite_closed", "x"), "invalid_state"),
    (GroupError("key_missing", "x"), "invalid_state"),
    (GroupError("upgrade_needed", "x"), "invalid_state"),
    (GroupError("over_quota", "x"), "rate_limited"),
    (KeyMissing("x"), "invalid_state"),
    (KeyFileError("x", "do this"), "locked"),
    (StoreError("corrupt", "x"), "storage_corrupt"),
    (StoreError("full", "x"), "storage_full"),
    (StoreError("too_new", "x"), "invalid_state"),
    (StoreError("busy", "x"), "rate_limited"),
    (RefusedError("forbidden", "x"), "forbidden"),
    (RefusedError("not_found", "x"), "not_found"),
    (RefusedError("conflict", "x"), "conflict"),
    (RefusedError("too_large", "x"), "too_large"),
    (RefusedError("invalid", "x"), "invalid_params"),
    (RefusedError("secret", "x"), "secret_refused"),
    (RefusedError("rate", "x"), "rate_limited"),
    (RefusedError("unknown_scope", "x"), "not_found"),
    (BodyDecodeError("x"), "invalid_params"),
    (MemoryUsageError("x"), "internal"),
    (msgspec.ValidationError("x"), "invalid_params"),
    (msgspec.DecodeError("x"), "parse_error"),
    (trio.TooSlowError(), "deadline"),
    (OSError(errno.ENOSPC, "x"), "storage_full"),
    (OSError(errno.EPERM, "x"), "internal"),
    (ModuleNotFoundError("x"), "extra_missing"),
    (RuntimeError("x"), "internal"),
    (ExceptionGroup("x", [ExceptionGroup("y", [p2p_errors.Busy("x")])]), "rate_limited"),
]

# Types that never leave the place that raises them, or that only the process or the command line
# shows: they have exit codes of their own.
ELSEWHERE = {CliError, NotRunning, ConnectionLost, AlreadyRunning}


@pytest.mark.parametrize(
    ("error", "name"), ROWS, ids=[f"{i}-{error!r}"[:40] for i, (error, _) in enumerate(ROWS)]
)
def test_an_exception_becomes_its_answer(error: Exception, name: str) -> None:
    answer = to_rpc_error(error)
    assert answer.name == name
    body = answer.as_json()
    assert body["code"] == BY_NAME[name].code
    data = body["data"]
    assert isinstance(data, dict)
    assert data["name"] == name
    assert data["remedy"]
    if name == "rate_limited":
        assert isinstance(data["retry_ms"], int)


@pytest.mark.attack
@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), ValueError("secret"), p2p_errors.RemoteError(9, "secret")]
)
def test_foreign_texts_are_not_passed_on(error: Exception) -> None:
    assert "secret" not in str(to_rpc_error(error).as_json())


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # MCP answers in codes of its own, the demo in words, and `__main__` runs; agents are
        # connected by the command line alone, which tells the reason itself.
        others = ("daemon.demo", "daemon.mcp", "daemon.connect", "daemon.__main__")
        if not found.name.startswith(others):
            yield importlib.import_module(found.name)


def test_every_public_exception_type_has_a_row_or_inherits_one() -> None:
    known = tuple({type(error) for error, _ in ROWS} - {RuntimeError, OSError, ExceptionGroup})
    missing = set()
    for package in (p2p, memory, daemon):
        for module in modules_of(package):
            for name, found in vars(module).items():
                if (
                    inspect.isclass(found)
                    and issubclass(found, Exception)
                    and found.__module__ == module.__name__
                    and not name.startswith("_")
                    and found not in ELSEWHERE
                    and found not in {p2p_errors.P2pError, MemoryStoreError}
                    and not issubclass(found, known)
                ):
                    missing.add(f"{module.__name__}.{name}")
    assert missing == MAPPED_BY_THEIR_CALLERS


# A caller in the same package turns these into one of the rows.
MAPPED_BY_THEIR_CALLERS = {
    "daemon.charts.picture.PictureMissing",  # the command line writes a page instead
    "daemon.client.CallFailed",  # raised in the client's process
    "memory.errors.EmbedError",  # recall goes on by words, daemon.wiring names the setting
    "memory.transfer.importing.ImportFileError",  # read by the command line, which names the file
    "p2p.rpc_client.LaneDeadError",  # p2p.rpc retries, then says Unreachable
}


def test_codes_and_names_are_unique_and_outside_the_reserved_range() -> None:
    assert len(BY_CODE) == len(BY_NAME)
    standard = {-32700, -32600, -32601, -32602, -32603}
    for code in BY_CODE:
        assert code in standard or not -32768 <= code <= -32000


def test_the_specification_lists_every_error() -> None:
    text = SPEC.read_text()
    found = re.findall(r"^\| (-?\d+) \| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    rows = {(int(code), name, int(exit_code)) for code, name, exit_code in found}
    assert rows == {(kind.code, kind.name, kind.exit_code) for kind in BY_CODE.values()}


def test_the_reasons_why_rounds_fail_are_known_and_documented() -> None:
    source = "".join(path.read_text() for path in Path("federated/rounds").rglob("*.py"))
    given = set(re.findall(r'RoundError\(\s*"(\w+)"', source))
    assert {"nobody", "unread"} <= given <= set(ERROR_OF)
    listed = re.search(r"Reasons of failed calls: (.*?)\.\s", ROUNDS.read_text(), re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(ERROR_OF)
    assert all(f"`{reason}`" in (RoundError.__doc__ or "") for reason in ERROR_OF)


@pytest.mark.attack
def test_a_sum_that_a_member_denied_is_not_to_be_tried_again_as_it_was() -> None:
    """A script that repeats what is temporary would hand a second sum to who denied the first."""
    answer = RpcError(ERROR_OF["unread"], "x")
    assert answer.kind.exit_code != RpcError("aborted", "x").kind.exit_code == 75
    assert "without the machine" in answer.remedy


def test_the_reasons_that_replication_gives_are_known() -> None:
    source = "".join(path.read_text() for path in Path("p2p/replication").glob("*.py"))
    given = set(re.findall(r'GroupError\(\s*"(\w+)"', source))
    assert given
    assert given <= set(error_map._REASONS)
