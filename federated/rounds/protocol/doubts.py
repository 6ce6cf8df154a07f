"""Whom, and what, this member does without, from what it saw itself in a round."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Doubts:
    """Kept through all views of a round.

    Attributes:
        unreliable: who merged badly, or not at all: it gets no part in plans of ours.
        banned: who signed two contradicting messages: it is in no plan of ours, and not heard as a
            coordinator.
        roots: results whose merged parts were not all here when a view ended, whoever is to blame,
            by root with the hashes of the parts.
        here: merged parts that are here.
    """

    unreliable: set[bytes] = field(default_factory=set)
    banned: set[bytes] = field(default_factory=set)
    roots: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    here: set[bytes] = field(default_factory=set)

    def cannot_finish(self, root: bytes) -> bool:
        """Whether a view of ours that is to finish this result would fail as the last one did.

        A vote for it is then left out of those that let our view begin. If the result had been
        decided, a quorum voted for it, and the rest are too few for a view: nothing else is chosen.
        """
        return not set(self.roots.get(root, ())) <= self.here
