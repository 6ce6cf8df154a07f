"""A `with` block of a blocking connection ends it, whatever happens in the block."""

from __future__ import annotations

import pytest
from typing_extensions import override

from daemon.closing import Closes


class Line(Closes):
    """Notes each time it is closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    @override
    def close(self) -> None:
        self.closed.append("closed")


def test_the_end_of_the_block_closes() -> None:
    line = Line()
    with line as inside:
        assert inside is line
        assert not line.closed
    assert line.closed == ["closed"]


def test_what_the_block_raises_goes_on_and_it_is_closed() -> None:
    line = Line()
    with pytest.raises(ValueError, match="theirs"), line:
        raise ValueError("theirs")
    assert line.closed == ["closed"]
