"""What can go wrong in `memory`."""

from __future__ import annotations


class MemoryStoreError(Exception):
    """Root of the package's errors (no builtin's name)."""


class StoreError(MemoryStoreError):
    """The database cannot serve.

    Args:
        reason: `corrupt`, `full`, `too_new`, `busy`, `io` (reading or writing failed) or
            `closed` (the daemon is stopping).
        message: what is wrong and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RefusedError(MemoryStoreError):
    """A well-formed request that may not be carried out.

    Args:
        reason: `forbidden`, `not_found`, `conflict`, `state`, `too_large`, `invalid`, `secret`,
            `rate` or `unknown_scope`.
        message: what is wrong and what to do; never memory text.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EmbedError(MemoryStoreError):
    """An embedder cannot be used or gave no vector.

    Args:
        reason: `extra_missing`, `model_missing`, `model_altered` or `failed`.
        message: what is wrong and what to do; never memory text.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DecodeError(MemoryStoreError):
    """Foreign bytes that are not a valid body. The only error of `decode_*_untrusted`."""


class UsageError(MemoryStoreError):
    """We misused the API: a bug on this side."""
