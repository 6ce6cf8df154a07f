"""Train one small language model in four places that exchange a few kilobytes now and then.

Run: python examples/character_model.py [FILE ...]
Each worker has its own part of the text and its own optimiser. Every few steps a worker asks to
exchange a fragment of the model; training goes on meanwhile, and whoever misses an exchange loses
nothing. All workers are in this one process: an exchange is a function call. Without FILE the text
is this repository's documentation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices this small: threads only wait

import numpy as np

from federated.errors import UsageError
from federated.rounds.training.local import merge
from federated.rounds.training.outer import Outer
from federated.rounds.training.outer_words import OuterConfig, Skipped, Sync

DOCS = Path(__file__).resolve().parents[1] / "docs"
CONTEXT, EMBEDDING, HIDDEN, BATCH = 8, 16, 128, 64
LETTERS_MAX = 96  # rarer characters share a code
TEXT_MIN = 20_000

Params: TypeAlias = "dict[str, np.ndarray]"


# ---- the text


def read(paths: list[Path]) -> str:
    """The files' text, or the documentation's."""
    chosen = paths or sorted(DOCS.rglob("*.md"))
    try:
        text = "\n".join(path.read_text("utf-8", errors="replace") for path in chosen)
    except OSError as error:
        sys.exit(f"cannot read {error.filename}: {error.strerror}")
    if len(text) < TEXT_MIN:
        sys.exit(f"{len(text):,} characters are too few to learn from: give {TEXT_MIN:,} or more")
    return text


def coded(text: str) -> tuple[np.ndarray, int]:
    """Codes of the characters, and how many codes there are."""
    letters = [letter for letter, _ in Counter(text).most_common(LETTERS_MAX - 1)]
    code = {letter: number for number, letter in enumerate(letters)}
    return np.array([code.get(letter, len(letters)) for letter in text]), len(letters) + 1


def batch(rng: np.random.Generator, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` random places: the characters before each, and the one that follows."""
    at = rng.integers(0, len(codes) - CONTEXT - 1, n)
    return np.stack([codes[at + back] for back in range(CONTEXT)], 1), codes[at + CONTEXT]


# ---- the model: an embedding, a tanh layer, a residual layer, a softmax


def fresh(letters: int, seed: int) -> Params:
    """A model that knows nothing."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    width = CONTEXT * EMBEDDING
    return {
        "embedding": matrix(letters, EMBEDDING, 0.3),
        "first.weight": matrix(width, HIDDEN, width**-0.5),
        "first.bias": np.zeros(HIDDEN, np.float32),
        "second.weight": matrix(HIDDEN, HIDDEN, HIDDEN**-0.5),
        "second.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": matrix(HIDDEN, letters, 0.01),
        "output.bias": np.zeros(letters, np.float32),
    }


def learn(p: Params, before: np.ndarray, after: np.ndarray) -> tuple[float, Params]:
    """Loss in nats a character, and its gradients."""
    rows = np.arange(len(after))
    e = p["embedding"][before].reshape(len(before), -1)
    h1 = np.tanh(e @ p["first.weight"] + p["first.bias"])
    z2 = np.maximum(h1 @ p["second.weight"] + p["second.bias"], 0)
    scores = (h1 + z2) @ p["output.weight"] + p["output.bias"]
    scores -= scores.max(1, keepdims=True)
    powers = np.exp(scores)
    chances = powers / powers.sum(1, keepdims=True)
    loss = float(-np.log(chances[rows, after] + 1e-12).mean())
    chances[rows, after] -= 1
    d = chances / len(after)
    g: Params = {"output.weight": (h1 + z2).T @ d, "output.bias": d.sum(0)}
    dh = d @ p["output.weight"].T
    dz = dh * (z2 > 0)
    g["second.weight"], g["second.bias"] = h1.T @ dz, dz.sum(0)
    dh = (dh + dz @ p["second.weight"].T) * (1 - h1 * h1)
    g["first.weight"], g["first.bias"] = e.T @ dh, dh.sum(0)
    g["embedding"] = np.zeros_like(p["embedding"])
    de = (dh @ p["first.weight"].T).reshape(-1, EMBEDDING)
    np.add.at(g["embedding"], before.reshape(-1), de)
    return loss, g


class Adam:
    """The inner optimiser: any would do."""

    def __init__(self, params: Params, steps: int) -> None:
        self.mean = {name: np.zeros_like(value) for name, value in params.items()}
        self.square = {name: np.zeros_like(value) for name, value in params.items()}
        self.steps, self.t = steps, 0

    def step(self, params: Params, gradients: Params) -> None:
        """Change the parameters in place."""
        self.t += 1
        rate = 2e-3 * min(1.0, self.t / 50) * (1 - 0.9 * self.t / self.steps)
        for name, value in params.items():
            mean, square, gradient = self.mean[name], self.square[name], gradients[name]
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient * gradient - square)
            scaled = mean / (1 - 0.9**self.t) / (np.sqrt(square / (1 - 0.99**self.t)) + 1e-8)
            value[...] = value - rate * scaled


# ---- training together


@dataclass
class Worker:
    """One place: its part of the text, its own copy of the model, its outer optimiser."""

    codes: np.ndarray
    rng: np.random.Generator
    params: Params
    adam: Adam
    outer: Outer


@dataclass
class Setting:
    """What the command line asked for, and the text."""

    args: argparse.Namespace
    parts: list[np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    start: Params


def together(told: Setting, config: OuterConfig) -> tuple[float, int]:
    """Loss of the common model, and bytes that one worker sent; prints as it goes."""
    workers = []
    for number, codes in enumerate(told.parts):
        own = {name: value.copy() for name, value in told.start.items()}
        rng = np.random.default_rng(told.args.seed + 1 + number)
        adam = Adam(own, told.args.steps)
        workers.append(Worker(codes, rng, own, adam, Outer(own, config)))
    luck = np.random.default_rng(told.args.seed)
    sent = 0
    for t in range(1, told.args.steps + 1):
        exchanges: dict[int, list[tuple[Worker, Sync]]] = {}
        for worker in workers:
            _, gradients = learn(worker.params, *batch(worker.rng, worker.codes, BATCH))
            worker.adam.step(worker.params, gradients)
            for request in worker.outer.after_inner_step(t, worker.params, tokens=BATCH):
                match request:
                    case Sync():
                        exchanges.setdefault(request.fragment, []).append((worker, request))
                    case Skipped():
                        print(f"step {t}: fragment {request.fragment} skipped: {request.reason}")
                    case _:
                        pass  # parameters were changed in place
        for fragment, pairs in exchanges.items():
            here = [pair for pair in pairs if luck.random() >= told.args.missing] or pairs[:1]
            sent += exchange(workers, fragment, here)
            loss, _ = learn(workers[0].outer.common(), *told.held_out)
            print(
                f"step {t:5}: {len(here)} of {len(workers)} exchanged fragment {fragment},"
                f" loss {loss:.3f}, {sent / 1e3:,.0f} kB sent a worker"
            )
        for worker in workers:
            worker.outer.apply(worker.params)
    return learn(workers[0].outer.common(), *told.held_out)[0], sent


def exchange(workers: list[Worker], fragment: int, here: list[tuple[Worker, Sync]]) -> int:
    """What a round between machines does: merge who came in time, tell everybody; bytes each."""
    first = here[0][1]
    encoded = [(sync.encoded(), sync.weight) for _, sync in here]
    merged = merge(first.codec, encoded, len(first.delta))
    in_time = [worker for worker, _ in here]
    for worker in workers:
        if not any(worker is other for other in in_time):
            worker.outer.failed(fragment, "late")
        worker.outer.merged(fragment, first.base_root, merged)
    return len(encoded[0][0])


def every_step(told: Setting) -> tuple[float, int]:
    """Data-parallel training on the same text: all gradients travel at each step, in f32."""
    params = {name: value.copy() for name, value in told.start.items()}
    rngs = [np.random.default_rng(told.args.seed + 1 + k) for k in range(len(told.parts))]
    adam = Adam(params, told.args.steps)
    for _ in range(told.args.steps):
        found = [
            learn(params, *batch(rng, codes, BATCH))[1]
            for rng, codes in zip(rngs, told.parts, strict=True)
        ]
        adam.step(params, {name: sum(g[name] for g in found) / len(found) for name in params})
    size = sum(value.nbytes for value in params.values())
    return learn(params, *told.held_out)[0], told.args.steps * size


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="*", type=Path, help="text to learn from, UTF-8")
    parser.add_argument("--workers", type=int, default=4, help="places that train (4)")
    parser.add_argument("--steps", type=int, default=450, help="steps of each (450)")
    parser.add_argument("--every", type=int, default=30, help="steps between exchanges (30)")
    parser.add_argument("--overlap", type=int, default=3, help="steps during an exchange (3)")
    parser.add_argument("--codec", default="e3m0", choices=["e3m0", "int8", "f32"])
    parser.add_argument("--missing", type=float, default=0.0, help="chance to miss an exchange (0)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 1 <= args.workers <= 64 or args.steps < 1 or not 0 <= args.missing < 1:
        parser.error("--workers is 1 to 64, --steps at least 1, --missing within 0..1")
    return args


def main() -> None:
    """Train both ways and compare."""
    args = arguments()
    codes, letters = coded(read(args.file))
    border = len(codes) * 95 // 100
    held_out = batch(np.random.default_rng(9), codes[border:], 2000)
    parts = np.array_split(codes[:border], args.workers)
    told = Setting(args, parts, held_out, fresh(letters, args.seed))
    try:
        config = OuterConfig(inner_steps=args.every, overlap=args.overlap, codec=args.codec)
    except UsageError as error:
        sys.exit(str(error))
    size = sum(value.size for value in told.start.values())
    print(f"{size:,} parameters, {args.workers} workers, {len(codes):,} characters")
    ours, sent = together(told, config)
    print("the same text, exchanging gradients at every step ...")
    theirs, full = every_step(told)
    print(f"every step:  loss {theirs:.3f}, {full / 1e6:,.1f} MB sent a worker")
    print(f"now and then: loss {ours:.3f} ({ours / theirs - 1:+.1%}), {sent / 1e6:,.2f} MB", end="")
    print(f", {full / sent:,.0f} times fewer bytes" if sent else ", nothing: too few steps")


if __name__ == "__main__":
    main()
