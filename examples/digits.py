"""Five machines learn to read digits together; each sees other digits, and one of them lies.

Run: python examples/digits.py [--rounds 60] [--rule centred_clipping]
Each machine has a daemon of its own and most of its pictures of few digits. `eve` sends the
opposite of what she learned, three times over. Watch the others' accuracy, then try `--rule mean`.
With scikit-learn installed the pictures are its handwritten digits, else they are drawn here.
"""

from __future__ import annotations

import argparse
import json
import threading

import numpy as np
from machines import machines

from daemon.trainer import Trainer

NAMES = ["ada", "bob", "cleo", "dan", "eve"]
LIAR = "eve"
FONT = {
    0: "111101101101111", 1: "010110010010111", 2: "111001111100111", 3: "111001111001111",
    4: "101101111001001", 5: "111100111001111", 6: "111100111101111", 7: "111001001010010",
    8: "111101111101111", 9: "111101111001111",
}  # fmt: skip


def pictures(rng):
    """(pictures of 64 numbers within 0 and 1, digits)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return drawn(rng, 1800)
    loaded = load_digits()
    order = rng.permutation(len(loaded.target))
    return (loaded.data[order] / 16).astype(np.float32), loaded.target[order]


def drawn(rng, count):
    """Digits of a small font, moved, faded and with noise."""
    digits = rng.integers(0, 10, count)
    made = np.zeros((count, 8, 8), np.float32)
    for picture, digit in zip(made, digits, strict=True):
        strokes = np.array(list(FONT[int(digit)]), np.float32).reshape(5, 3)
        top, left = rng.integers(1, 3), rng.integers(2, 4)
        picture[top : top + 5, left : left + 3] = strokes * rng.uniform(0.5, 1)
    made += rng.normal(0, 0.15, made.shape).astype(np.float32)
    return made.reshape(count, 64).clip(0, 1), digits


def initial():
    """A network 64-32-10, equal on all machines."""
    rng = np.random.default_rng(7)
    return {
        "w1": rng.normal(0, 0.15, (64, 32)).astype(np.float32),
        "b1": np.zeros(32, np.float32),
        "w2": rng.normal(0, 0.15, (32, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def scores(state, x):
    """Hidden layer and the logarithms of what each digit's share is meant to be."""
    hidden = np.maximum(x @ state["w1"] + state["b1"], 0)
    return hidden, hidden @ state["w2"] + state["b2"]


def accuracy(state, x, y):
    """Share of pictures that are read right."""
    return float(np.mean(scores(state, x)[1].argmax(1) == y))


def trained(state, x, y, rng, steps=40, rate=0.3):
    """A few steps of gradient descent on this machine's own pictures."""
    state = {name: array.copy() for name, array in state.items()}
    for _ in range(steps):
        chosen = rng.integers(0, len(y), 32)
        inputs, wanted = x[chosen], np.eye(10, dtype=np.float32)[y[chosen]]
        hidden, out = scores(state, inputs)
        shares = np.exp(out - out.max(1, keepdims=True))
        error = (shares / shares.sum(1, keepdims=True) - wanted) / len(chosen)
        back = error @ state["w2"].T * (hidden > 0)
        for name, slope in (
            ("w1", inputs.T @ back), ("b1", back.sum(0)),
            ("w2", hidden.T @ error), ("b2", error.sum(0)),
        ):  # fmt: skip
            state[name] -= np.float32(rate) * slope.astype(np.float32)
    return state


def take_part(machine, x, y, test, args, seen):
    """One machine's loop."""
    rng = np.random.default_rng(NAMES.index(machine.name))
    socket = str(machine.home / "run" / "daemon.sock")
    with Trainer(
        "digits", initial(), expected=len(NAMES), socket_path=socket, rule=args.rule,
        first_deadline_s=20,
    ) as trainer:  # fmt: skip
        for rnd in trainer.rounds(args.rounds):
            reached = accuracy(rnd.state, *test)
            new = trained(rnd.state, x, y, rng)
            if machine.name == LIAR:
                new = {name: rnd.state[name] - 3 * (new[name] - rnd.state[name]) for name in new}
            rnd.submit(new, weight=len(y), accuracy=reached)
            seen.setdefault(rnd.number, {})[machine.name] = reached
            if machine.name == NAMES[0]:
                print(f"round {rnd.number:>3}  accuracy {reached:.3f}", flush=True)


def main():
    """Train, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rule", default="centred_clipping")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    x, y = pictures(rng)
    test, x, y = (x[:400], y[:400]), x[400:], y[400:]
    shares = rng.dirichlet([0.5] * len(NAMES), 10)
    owner = np.array([rng.choice(len(NAMES), p=shares[digit]) for digit in y])
    seen = {}
    with machines(*NAMES) as made:
        loops = [
            threading.Thread(
                target=take_part,
                args=(machine, x[owner == index], y[owner == index], test, args, seen),
            )
            for index, machine in enumerate(made)
        ]
        for loop in loops:
            loop.start()
        for loop in loops:
            loop.join()
        print(made[0].covey("fed", "history", "--name", "digits", "--limit", "3"), end="")
        last = json.loads(made[0].covey("fed", "history", "--name", "digits", "--json"))
        print(made[0].covey("fed", "explain", last[0]["id"]), end="")
    reached = seen[max(seen)][NAMES[0]]
    print(f"accuracy {reached:.3f} after {args.rounds} rounds, with {LIAR} lying in each")


if __name__ == "__main__":
    main()
