"""What an exchange may ask of the session it runs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.replication.exchange_tails import Tails
    from p2p.replication.exchange_types import AdmitResult, GroupReport, Serving
    from p2p.replication.heads import Summary
    from p2p.replication.messages import Message
    from p2p.replication.ranges import RangeSet
    from p2p.replication.record import RecordWire
    from p2p.replication.store import LogKey, LogState


class Port(Protocol):
    """What an exchange may ask of its session."""

    salt: bytes
    side: bytes
    other_side: bytes
    me: bytes
    reconciles: bool
    """Whether both sides compare by ranges."""
    verifies: bool
    """Whether the session is to compare and to fetch nothing."""

    def send(self, message: Message) -> None:
        """Queue a message to the peer."""

    def ask_roots(self, group: bytes, then: Callable[[Summary], None]) -> None:
        """Summarise our set; no further message is handled before the answer."""

    def ask_logs(self, group: bytes, then: Callable[[Sequence[LogState]], None]) -> None:
        """Where our logs stand."""

    def ask_ranges(self, group: bytes, then: Callable[[Sequence[RangeSet]], None]) -> None:
        """Our sets of both lanes."""

    def ask_ids(
        self,
        group: bytes,
        places: Sequence[tuple[LogKey, int]],
        then: Callable[[Sequence[bytes | None]], None],
    ) -> None:
        """Ids at places of our logs."""

    def admit(
        self, group: bytes, wires: Sequence[RecordWire], then: Callable[[AdmitResult], None]
    ) -> None:
        """Hand records to admission."""

    def serve(self, exchange: Tails, job: Serving) -> None:
        """Queue an answer, sent as the peer reads."""

    def finished(self, report: GroupReport) -> None:
        """The exchange ended."""
