"""A character model in numpy that four workers train: by itself, data-parallel, or through `Outer`.

Eight previous characters, an embedding of 24, `tanh(192 -> 160)`, two residual `h + relu(160 ->
160)`, a softmax: 94,425 parameters for 65 characters. AdamW 2e-3 (.9, .99, decay .01), 50 steps of
warm-up, cosine to a tenth; batches of 64. The first 95 % of the text are dealt out to the workers
in contiguous parts, loss is that of 6,000 fixed positions of the rest.
Source of the settings: docs/specs/rounds.md.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.memory.data import files
from federated.rounds.numeric.codec import encoded_size
from federated.rounds.training.local import merge
from federated.rounds.training.outer import Outer
from federated.rounds.training.outer_words import Sync

if TYPE_CHECKING:
    from pathlib import Path

    from federated.rounds.training.outer_words import OuterConfig

Params = dict[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]

CONTEXT: Final = 8
EMBEDDING: Final = 24
HIDDEN: Final = 160
BATCH: Final = 64
POSITIONS: Final = 6000
WORKERS: Final = 4
RATE: Final = 2e-3
WARM_UP: Final = 50

FRAGMENTS: Final = (
    ("embedding", "layer2.weight", "layer2.bias"),
    ("layer1.weight", "layer1.bias", "output.weight", "output.bias"),
    ("layer3.weight", "layer3.bias"),
)


@dataclass(frozen=True)
class Text:
    """Codes of a text's characters, dealt out.

    Attributes:
        alphabet: how many there are.
        parts: int64[n] of each worker.
        held_out: what loss is measured on.
    """

    alphabet: int
    parts: list[np.ndarray]
    held_out: Batch


@dataclass(frozen=True)
class Trained:
    """A run: loss of the common parameters, and bytes that a worker sent."""

    loss: float
    sent_bytes: float


def text(folder: Path) -> Text:
    """Tiny Shakespeare.

    Raises:
        DataMissing: it is not in the folder.
    """
    [path] = files(folder, "tinyshakespeare")
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    told = "\n\n".join(
        line["text"] if line["speaker"] is None else f"{line['speaker']}:\n{line['text']}"
        for line in lines
    )
    letters = {letter: code for code, letter in enumerate(sorted(set(told) | {"\n"}))}
    codes = np.array([letters[letter] for letter in told + "\n"])
    border = int(len(codes) * 0.95)
    held_out = batch(np.random.default_rng(9), codes[border:], POSITIONS)
    return Text(len(letters), np.array_split(codes[:border], WORKERS), held_out)


def batch(rng: np.random.Generator, codes: np.ndarray, n: int) -> Batch:
    """`n` random positions: int64[n, CONTEXT] what stood before, int64[n] what came."""
    at = rng.integers(0, len(codes) - CONTEXT - 1, n)
    return np.stack([codes[at + back] for back in range(CONTEXT)], 1), codes[at + CONTEXT]


def fresh(alphabet: int, seed: int) -> Params:
    """Parameters before training."""
    rng = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

    found = {"embedding": (rng.standard_normal((alphabet, EMBEDDING)) * 0.3).astype(np.float32)}
    for number, rows in ((1, CONTEXT * EMBEDDING), (2, HIDDEN), (3, HIDDEN)):
        found[f"layer{number}.weight"] = layer(rows, HIDDEN)
        found[f"layer{number}.bias"] = np.zeros(HIDDEN, np.float32)
    found["output.weight"] = (rng.standard_normal((HIDDEN, alphabet)) * 0.01).astype(np.float32)
    found["output.bias"] = np.zeros(alphabet, np.float32)
    return found


def loss_and_gradients(p: Params, told: Batch, *, wanted: bool = True) -> tuple[float, Params]:
    """Mean cross-entropy in nats, and its gradients if `wanted`."""
    before, after = told
    rows = np.arange(len(after))
    e = p["embedding"][before].reshape(len(before), -1)
    h1 = np.tanh(e @ p["layer1.weight"] + p["layer1.bias"])
    z2 = np.maximum(h1 @ p["layer2.weight"] + p["layer2.bias"], 0)
    h2 = h1 + z2
    z3 = np.maximum(h2 @ p["layer3.weight"] + p["layer3.bias"], 0)
    h3 = h2 + z3
    scores = h3 @ p["output.weight"] + p["output.bias"]
    scores -= scores.max(1, keepdims=True)
    powers = np.exp(scores)
    sums = powers.sum(1, keepdims=True)
    loss = float((np.log(sums[:, 0]) - scores[rows, after]).mean())
    if not wanted:
        return loss, {}
    d = powers / sums
    d[rows, after] -= 1
    d /= len(after)
    g: Params = {"output.weight": h3.T @ d, "output.bias": d.sum(0)}
    dh = d @ p["output.weight"].T
    for number, below, z in ((3, h2, z3), (2, h1, z2)):
        dz = dh * (z > 0)
        g[f"layer{number}.weight"], g[f"layer{number}.bias"] = below.T @ dz, dz.sum(0)
        dh = dh + dz @ p[f"layer{number}.weight"].T
    dh *= 1 - h1 * h1
    g["layer1.weight"], g["layer1.bias"] = e.T @ dh, dh.sum(0)
    de = (dh @ p["layer1.weight"].T).reshape(-1, EMBEDDING)
    g["embedding"] = np.zeros_like(p["embedding"])
    np.add.at(g["embedding"], before.reshape(-1), de)
    return loss, g


class AdamW:
    """The inner optimiser of one worker, for a run of `steps` steps."""

    def __init__(self, params: Params, steps: int) -> None:
        self._mean = {name: np.zeros_like(value) for name, value in params.items()}
        self._square = {name: np.zeros_like(value) for name, value in params.items()}
        self._steps, self._t = steps, 0

    def step(self, params: Params, gradients: Params) -> None:
        """Change `params` in place."""
        self._t += 1
        done = min(1.0, self._t / self._steps)
        rate = RATE * min(1.0, self._t / WARM_UP) * (0.45 * (1 + np.cos(np.pi * done)) + 0.1)
        for name, value in params.items():
            mean, square, gradient = self._mean[name], self._square[name], gradients[name]
            mean *= 0.9
            mean += 0.1 * gradient
            square *= 0.99
            square += 0.01 * gradient * gradient
            scaled = mean / (1 - 0.9**self._t) / (np.sqrt(square / (1 - 0.99**self._t)) + 1e-8)
            value[...] = value - rate * (scaled + 0.01 * value)


def data_parallel(told: Text, seed: int, steps: int) -> Trained:
    """The yardstick: gradients of all workers are averaged at each step, in f32."""
    draws = [np.random.default_rng(100 * seed + worker) for worker in range(WORKERS)]
    params = fresh(told.alphabet, seed)
    adam = AdamW(params, steps)
    for _ in range(steps):
        found = [
            loss_and_gradients(params, batch(draw, part, BATCH))[1]
            for draw, part in zip(draws, told.parts, strict=True)
        ]
        adam.step(params, {name: sum(g[name] for g in found) / WORKERS for name in params})
    sent = steps * encoded_size("f32", sum(value.size for value in params.values()))
    return Trained(loss_and_gradients(params, told.held_out, wanted=False)[0], sent)


@dataclass(eq=False)
class _Worker:
    params: Params
    adam: AdamW
    outer: Outer
    rng: np.random.Generator
    codes: np.ndarray


def streaming(
    told: Text, seed: int, steps: int, config: OuterConfig, missing: float = 0.0
) -> Trained:
    """Workers that share through `Outer` alone; each misses each sync with this probability."""
    first = fresh(told.alphabet, seed)
    workers = []
    for number in range(WORKERS):
        own = {name: value.copy() for name, value in first.items()}
        rng = np.random.default_rng(100 * seed + number)
        outer = Outer(own, config)
        workers.append(_Worker(own, AdamW(own, steps), outer, rng, told.parts[number]))
    chance = np.random.default_rng(seed + 7)
    sent = 0
    for t in range(1, steps + 1):
        asked: dict[int, list[tuple[_Worker, Sync]]] = {}
        for worker in workers:
            gradients = loss_and_gradients(worker.params, batch(worker.rng, worker.codes, BATCH))[1]
            worker.adam.step(worker.params, gradients)
            for request in worker.outer.after_inner_step(t, worker.params, BATCH):
                if isinstance(request, Sync):
                    asked.setdefault(request.fragment, []).append((worker, request))
        for fragment, pairs in asked.items():
            sent += encoded_size(config.codec, len(pairs[0][1].delta))
            _round(workers, fragment, pairs, chance, missing)
        if not config.overlap:
            for worker in workers:
                worker.outer.apply(worker.params)
    [root] = {
        tuple(worker.outer.root(index) for index in range(len(worker.outer.fragment_names)))
        for worker in workers
    }
    assert all(root)
    common = workers[0].outer.common()
    return Trained(loss_and_gradients(common, told.held_out, wanted=False)[0], sent)


def _round(
    workers: list[_Worker],
    fragment: int,
    pairs: list[tuple[_Worker, Sync]],
    chance: np.random.Generator,
    missing: float,
) -> None:
    """All members hear the result, also those whose difference did not come in time."""
    here = [pair for pair in pairs if chance.random() >= missing] or pairs[:1]
    included = {id(worker) for worker, _ in here}
    _, first = here[0]
    encoded = [(request.encoded(), request.weight) for _, request in here]
    result = merge(first.codec, encoded, len(first.delta))
    for worker in workers:
        if id(worker) not in included:
            worker.outer.failed(fragment, "late")
        assert not worker.outer.merged(fragment, first.base_root, result)
