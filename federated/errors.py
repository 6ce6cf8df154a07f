"""What can go wrong in `federated`, named by situation.

Bytes of peers raise `p2p.errors.DecodeError`; what a caller asked for and cannot have is a
`PlanError` or a `JobError`, whose `reason` is one of docs/specs/jobs.md's words.
"""

from __future__ import annotations

import errno


class FederatedError(Exception):
    """Root of the package's errors."""


class UsageError(FederatedError):
    """We misused the API: a bug on this side."""


class PlanError(FederatedError):
    """A job that cannot be run as it is written.

    Args:
        reason: a word of docs/specs/jobs.md: `bad_spec`, `bad_value`, `duplicate_key`,
            `unknown_handler`, `no_eligible_peer`, `plan_changed`, `too_large`, `not_permitted`.
        message: what is wrong and what to do, for a person.
        path: where in the spec, such as `rows[3].title`; empty for the whole.
    """

    def __init__(self, reason: str, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.reason = reason
        self.path = path


class JobError(FederatedError):
    """An order that the job named cannot follow.

    Args:
        reason: `unknown_job`, `bad_state`, `conflict`, `too_many`, `journal`, `journal_full`.
        message: what is wrong and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RoundError(FederatedError):
    """A round that came to nothing, or may not begin.

    Args:
        reason: `nobody` (no other member asked the same), `plain_refused` (members of several
            owners would see each other's data), `no_masks` (they cannot hide it from each other),
            `below_quorum`, `timeout`, `unread` (the sum is decided and cannot be read here: others
            may have read it, so nobody repeats it unasked), `busy`, `too_few`,
            `unknown` (no member of it), `stale` (too many rounds late), `differs`.
        message: what is wrong and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class HandlerError(FederatedError):
    """A handler could not do a task; the task's other side is told the reason alone.

    Args:
        reason: `exception`, `timeout`, `memory`, `output`, `bad_output`, `unavailable`, `busy`,
            `quota`, `policy`, `cancelled`; the first word decides whether another peer is asked.
        message: for this machine's log and person.
        retry_after_s: when trying again makes sense; 0 if unknown.
    """

    def __init__(self, reason: str, message: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


def is_full(error: BaseException) -> bool:
    """Whether an error, or all errors of a group, say that a disk is full; see `seams.Db`."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_full(one) for one in error.exceptions)
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return getattr(error, "reason", "") == "full"
