"""What ends with its `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Closes(ABC):
    """A connection of a blocking program, ended by the end of its `with` block or by `close`.

    What the block raises goes on.
    """

    @abstractmethod
    def close(self) -> None:
        """End it; a second time does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()
