"""Exceptions of all packages into RPC errors: the only place that knows both.

Texts of our own packages' errors are passed on: they say what is wrong and what to do, and carry
no memory text, query, token or ticket. Texts of everything else (library errors, assertions)
stay in the log. `tests/unit/test_errors.py` holds a row for each public exception type.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from daemon.errors import ConfigError, RpcError
from daemon.paths import PathsError
from federated import errors as federated_errors
from memory import errors as memory_errors
from p2p import errors as p2p_errors
from p2p.identity import KeyFileError
from p2p.replication.sealing import KeyMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.json_types import Json

_STORE: Final[Mapping[str, str]] = {
    "corrupt": "storage_corrupt",
    "full": "storage_full",
    "too_new": "invalid_state",
    "busy": "rate_limited",
}
_REFUSED: Final[Mapping[str, str]] = {
    "forbidden": "forbidden",
    "not_found": "not_found",
    "conflict": "conflict",
    "state": "invalid_state",
    "too_large": "too_large",
    "invalid": "invalid_params",
    "secret": "secret_refused",
    "rate": "rate_limited",
    "unknown_scope": "not_found",
}
# Codes of docs/specs/rpc.md that a peer answered with.
_REMOTE: Final[Mapping[int, str]] = {
    1: "api_mismatch",
    2: "refused",
    3: "forbidden",
    4: "deadline",
    5: "cancelled",
    6: "rate_limited",
    7: "too_large",
    8: "aborted",
    9: "refused",
    10: "peer_unreachable",
}
# Reasons of replication.md s.11, under the codes it gives them.
_REASONS: Final[Mapping[str, str]] = {
    "not_permitted": "forbidden",
    "not_a_member": "forbidden",
    "unknown_group": "not_found",
    "unknown_join": "not_found",
    "unknown_member": "not_found",
    "unknown_invite": "not_found",
    "erased": "not_found",
    "expect_failed": "conflict",
    "ambiguous": "conflict",
    "ticket_used": "conflict",
    "already_member": "conflict",
    "bad_ticket": "invalid_state",
    "ticket_expired": "invalid_state",
    "invite_closed": "invalid_state",
    "key_missing": "invalid_state",
    "upgrade_needed": "invalid_state",
    "over_quota": "rate_limited",
    "cell_too_large": "too_large",
}
# Reasons of docs/specs/jobs.md.
_PLAN: Final[Mapping[str, str]] = {
    "bad_spec": "invalid_params",
    "bad_value": "invalid_params",
    "duplicate_key": "invalid_params",
    "unknown_handler": "not_found",
    "no_eligible_peer": "peer_unreachable",
    "plan_changed": "conflict",
    "too_large": "too_large",
    "not_permitted": "forbidden",
}
_JOB: Final[Mapping[str, str]] = {
    "unknown_job": "not_found",
    "bad_state": "invalid_state",
    "conflict": "conflict",
    "too_many": "rate_limited",
    "journal": "storage_corrupt",
    "journal_full": "storage_full",
}
_REMEDIES: Final[Mapping[str, str]] = {
    "no_eligible_peer": "`covey invite` adds a machine; `--engine local` computes here.",
    "unknown_handler": "`covey job handlers` shows them; `[jobs]` switches others on.",
    "too_many": "Wait for one to end (`covey job list`), or `covey job cancel ID`.",
    "not_permitted": "`covey group members GROUP` shows who may do what.",
    "not_a_member": "`covey group` lists this device's groups; a new invite lets it in again.",
}
"""What to do, where the usual remedy of the code would mislead."""
_RETRY_MS: Final = 1000


def _with_reason(name: str, message: str, reason: str = "") -> RpcError:
    data: dict[str, Json] = {}
    if reason:
        data["reason"] = reason
    if name == "rate_limited":
        data["retry_ms"] = _RETRY_MS
    return RpcError(name, message, remedy=_REMEDIES.get(reason), data=data)


def _from_p2p(error: p2p_errors.P2pError) -> RpcError:
    text = str(error)
    reason = getattr(error, "reason", None)
    if isinstance(reason, str) and reason in _REASONS:
        return _with_reason(_REASONS[reason], text, reason)
    match error:
        case KeyFileError():
            return RpcError("locked", text, remedy=error.remedy)
        case p2p_errors.RemoteError():
            # The peer's own text is foreign: only the code is passed on.
            name = _REMOTE.get(error.code, "aborted")
            return _with_reason(name, f"the other daemon refused (code {error.code})", "remote")
        case p2p_errors.Unreachable():
            return RpcError("peer_unreachable", text)
        case p2p_errors.TimedOut():
            return RpcError("deadline", text)
        case p2p_errors.Busy():
            return _with_reason("rate_limited", text)
        case p2p_errors.DiskFull():
            return RpcError("storage_full", text)
        case KeyMissing():
            return _with_reason("invalid_state", text, "key_missing")
        case p2p_errors.TransientError():
            return RpcError("aborted", text)
        case p2p_errors.VersionError():
            return RpcError("api_mismatch", text)
        case p2p_errors.AuthError():
            return RpcError("refused", text, data={"reason": "not_permitted"})
        case p2p_errors.LimitError():
            return RpcError("too_large", text)
        case p2p_errors.PeerError():
            return RpcError("aborted", text, data={"reason": "protocol"})
        case _:
            return internal()


def _from_memory(error: memory_errors.MemoryStoreError) -> RpcError:
    match error:
        case memory_errors.StoreError():
            return _with_reason(_STORE.get(error.reason, "internal"), str(error), error.reason)
        case memory_errors.RefusedError():
            return _with_reason(_REFUSED.get(error.reason, "refused"), str(error), error.reason)
        case memory_errors.DecodeError():
            return RpcError("invalid_params", str(error))
        case _:
            return internal()


def _from_federated(error: federated_errors.FederatedError) -> RpcError:
    match error:
        case federated_errors.PlanError():
            return _with_reason(_PLAN.get(error.reason, "invalid_params"), str(error), error.reason)
        case federated_errors.JobError():
            return _with_reason(_JOB.get(error.reason, "invalid_state"), str(error), error.reason)
        case _:
            return internal()


def internal() -> RpcError:
    """The answer to our own faults; details are in the log alone."""
    return RpcError("internal", "Covey failed inside; the log has the details")


def to_rpc_error(error: BaseException) -> RpcError:
    """What to answer when `error` ended a call.

    Args:
        error: any exception; a group counts as its first member.

    Returns:
        The error to send. Unknown exceptions become `internal` without their text.
    """
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    match error:
        case RpcError():
            return error
        case p2p_errors.P2pError():
            return _from_p2p(error)
        case memory_errors.MemoryStoreError():
            return _from_memory(error)
        case federated_errors.FederatedError():
            return _from_federated(error)
        case ConfigError() | PathsError():
            return RpcError("invalid_params", str(error))
        case msgspec.ValidationError():
            # The decoder names fields and types, never values.
            return RpcError("invalid_params", str(error))
        case msgspec.DecodeError():
            return RpcError("parse_error", "the text is not JSON")
        case trio.TooSlowError():
            return RpcError("deadline", "the time given was not enough")
        case trio.Cancelled():
            return RpcError("cancelled", "the request was cancelled")
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return RpcError("storage_full", "the disk is full")
        case ModuleNotFoundError():
            return RpcError("extra_missing", "a part of Covey that this needs is not installed")
        case _:
            return internal()


def is_bug(error: RpcError) -> bool:
    """Whether an answer means a fault of ours, which belongs into the log with its traceback."""
    return error.name == "internal"
