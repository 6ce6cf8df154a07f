"""What can go wrong in `p2p`, named by situation.

`UsageError` is our bug, `PeerError` is theirs, `RemoteError` their well-formed refusal, and
`TransientError` nobody's fault. Codecs know no peer: they raise `DecodeError` and the session that
feeds them fills the peer in where bytes enter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2p.identity import PeerId


class P2pError(Exception):
    """Root of the package's errors."""


class UsageError(P2pError):
    """We misused the API: a bug on this side."""


class PeerError(P2pError):
    """The other side broke the protocol.

    Args:
        message: what was broken, for the log; never foreign text.
        peer: who, once known.
    """

    def __init__(self, message: str, peer: PeerId | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class DecodeError(PeerError):
    """Foreign bytes that are not what they should be. The only error of `decode_*_untrusted`."""


class ProtocolError(PeerError):
    """A well-formed message that was not allowed now."""


class VersionError(PeerError):
    """No common version; the message names ours."""


class LimitError(PeerError):
    """The peer overran a stated limit."""


class AuthError(PeerError):
    """The peer is not who it should be, or may not do what it asks."""


class EquivocationError(PeerError):
    """The peer signed two histories."""


class RemoteError(P2pError):
    """The peer answered with a well-formed refusal.

    Args:
        code: one of docs/specs/rpc.md's codes.
        message: the peer's text, at most 512 characters; show it as data.
    """

    def __init__(
        self, code: int, message: str, *, retry_after_ms: int = 0, data: bytes = b""
    ) -> None:
        super().__init__(f"remote error {code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.data = data


class TransientError(P2pError):
    """Nobody's fault; trying again later may work."""


class Unreachable(TransientError):
    """No path to the peer, or it went away."""


class TimedOut(TransientError):
    """The deadline passed."""


class Busy(TransientError):
    """A limit of ours or theirs is full just now.

    Args:
        message: which limit.
        retry_after_ms: when trying again makes sense, 0 if unknown.
    """

    def __init__(self, message: str = "", *, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DiskFull(TransientError):
    """Our own disk has no room; what was done so far is kept."""
