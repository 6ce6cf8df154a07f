"""Embedders for tests: words as directions, and ones that misbehave."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class WordEmbedder:
    """The sum of a fixed random direction a word: texts that share words are near."""

    def __init__(self, name: str = "words", dim: int = 64) -> None:
        self.id = f"{name}@00000000"
        self.dim = dim
        self.batches: list[list[str]] = []
        self.queries: list[str] = []

    def encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        if query:
            self.queries += texts
        else:
            self.batches.append(list(texts))
        return np.stack([self.direction(text) for text in texts])

    def direction(self, text: str) -> NDArray[np.float32]:
        """float32[dim] of length 1."""
        total = np.zeros(self.dim)
        for word in text.lower().split() or [""]:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
            total += np.random.default_rng(seed).normal(size=self.dim)
        return (total / np.linalg.norm(total)).astype(np.float32)

    @property
    def texts(self) -> list[str]:
        """Everything embedded, in order."""
        return [text for batch in self.batches for text in batch]


class DyingEmbedder(WordEmbedder):
    """Fails from its `alive`-th batch on, until `mended` is set."""

    def __init__(self, alive: int, error: Exception | None = None) -> None:
        super().__init__()
        self.alive = alive
        self.mended = threading.Event()
        self.failures = 0
        self._error = error or RuntimeError("the session is gone")

    @override
    def encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        if len(self.batches) >= self.alive and not self.mended.is_set():
            self.failures += 1
            raise self._error
        return super().encode(texts, query=query)


class PickyEmbedder(WordEmbedder):
    """Fails for texts with a certain word; `wrong` says how."""

    def __init__(self, word: str, wrong: str = "raise") -> None:
        super().__init__()
        self._word = word
        self._wrong = wrong

    @override
    def encode(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        found = super().encode(texts, query=query)
        for row, text in enumerate(texts):
            if self._word in text:
                match self._wrong:
                    case "nan":
                        found[row, 3] = np.nan
                    case "zero":
                        found[row] = 0
                    case "shape":
                        return found[:, :-1]
                    case _:
                        raise ValueError("cannot read this")
        return found
