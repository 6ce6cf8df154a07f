"""Counters that keep a batch of random runs honest.

A simulation whose faults never happen proves nothing. Each fault kind is declared, counted when it
occurs, and a batch in which one stayed at zero fails.
"""

from __future__ import annotations


class Sometimes:
    """Counts of declared events.

    Args:
        names: every event that must occur at least once in the batch.
    """

    def __init__(self, *names: str) -> None:
        assert names, "declare what must happen"
        assert len(set(names)) == len(names), "each event is declared once"
        self.counts: dict[str, int] = dict.fromkeys(names, 0)

    def __call__(self, name: str, count: int = 1) -> None:
        """Count `name`.

        Raises:
            KeyError: nobody declared it: a misspelt name would otherwise never be missed.
        """
        if name not in self.counts:
            message = f"undeclared event {name!r}; declared are {', '.join(sorted(self.counts))}"
            raise KeyError(message)
        self.counts[name] += count

    def check(self) -> None:
        """Demand that every declared event occurred.

        Raises:
            AssertionError: names those that did not.
        """
        missing = [name for name, count in self.counts.items() if count == 0]
        assert not missing, (
            f"never happened in this batch: {', '.join(missing)}; "
            "draw them more often or run more seeds"
        )
