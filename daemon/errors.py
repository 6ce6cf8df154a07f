"""What the daemon answers when something goes wrong, and the one map from exceptions to it.

Every RPC error has a number, a name, an exit code for the command line and a remedy: a sentence
that says what to do. `daemon.error_map.to_rpc_error` is the only place where an exception of any
package becomes one. Source: docs/specs/local-rpc.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.json_types import Json


class ErrorKind(NamedTuple):
    """A row of the error table."""

    code: int
    name: str
    exit_code: int
    remedy: str


_ROWS: Final = (
    ErrorKind(-32700, "parse_error", 70, "Send one JSON object a line, in UTF-8."),
    ErrorKind(
        -32600,
        "invalid_request",
        2,
        "Send jsonrpc 2.0 with a method, params and an id; no batches.",
    ),
    ErrorKind(-32601, "unknown_method", 2, "See `covey rpc rpc.discover` for the methods."),
    ErrorKind(
        -32602,
        "invalid_params",
        2,
        "The message says what to change; `covey rpc rpc.discover` lists every parameter.",
    ),
    ErrorKind(
        -32603, "internal", 70, "A fault in Covey: look at `covey logs` and report the last lines."
    ),
    ErrorKind(1000, "unauthenticated", 5, "Use a token that `covey agents add NAME` printed."),
    ErrorKind(1001, "forbidden", 5, "Ask the owner for a token with the scope named."),
    ErrorKind(
        1002, "api_mismatch", 1, "Upgrade the older side, then restart the daemon: `covey down`."
    ),
    ErrorKind(1003, "not_found", 4, "Check the id or name; the matching list command shows them."),
    ErrorKind(
        1004, "conflict", 6, "Look at what is there now, then repeat with a new name or key."
    ),
    ErrorKind(1005, "invalid_state", 6, "Look at the state named, then try again."),
    ErrorKind(1006, "rate_limited", 75, "Wait for retry_ms, then repeat."),
    ErrorKind(1007, "too_large", 2, "Send less at once; data.limit names the largest size."),
    ErrorKind(1008, "deadline", 75, "Repeat with a longer --timeout."),
    ErrorKind(1009, "cancelled", 130, "It was cancelled; repeat it if you still want it."),
    ErrorKind(1010, "draining", 75, "The daemon is stopping: repeat after `covey up`."),
    ErrorKind(1011, "storage_full", 75, "Free disk space, then repeat; nothing was lost."),
    ErrorKind(
        1012,
        "storage_corrupt",
        1,
        "Stop the daemon and run `covey doctor store` before anything else.",
    ),
    ErrorKind(
        1013, "peer_unreachable", 75, "See that the other daemon is up and reachable, then repeat."
    ),
    ErrorKind(1014, "quarantined", 5, "Look at it and release or reject it."),
    ErrorKind(1015, "secret_refused", 5, "Take the secret out of the text."),
    ErrorKind(1016, "locked", 77, "Unlock the key store first."),
    ErrorKind(1017, "extra_missing", 1, "Install the extra that the message names."),
    ErrorKind(1018, "refused", 5, "The message says which rule refused it."),
    ErrorKind(1019, "aborted", 75, "The message says why; repeating may work."),
    # Not 75: a script that repeats the call would hand a second sum to who denied the first.
    ErrorKind(
        1020,
        "unread",
        5,
        "Ask again only without the machine that the message says spoilt it, if it names one: that"
        " one may have read the sum.",
    ),
)

BY_CODE: Final[Mapping[int, ErrorKind]] = {row.code: row for row in _ROWS}
BY_NAME: Final[Mapping[str, ErrorKind]] = {row.name: row for row in _ROWS}


class ConfigError(Exception):
    """The configuration is wrong; the message names file, line or variable and what to do."""


class RpcError(Exception):
    """An answer that is an error.

    Args:
        name: a name of the error table; it gives code, exit code and the usual remedy.
        message: what is wrong; never memory text, queries, tokens or tickets.
        remedy: what to do, when the usual one is not the best.
        data: more fields for programs, such as `limit` or `retry_ms`.
    """

    def __init__(
        self,
        name: str,
        message: str,
        *,
        remedy: str | None = None,
        data: Mapping[str, Json] | None = None,
    ) -> None:
        super().__init__(message)
        kind = BY_NAME[name]
        self.kind = kind
        self.code = kind.code
        self.name = name
        self.message = message
        self.remedy = remedy or kind.remedy
        self.data: dict[str, Json] = dict(data or {})

    def as_json(self) -> dict[str, Json]:
        """The JSON-RPC error object."""
        return {
            "code": self.code,
            "message": self.message,
            "data": {"name": self.name, "remedy": self.remedy, **self.data},
        }
