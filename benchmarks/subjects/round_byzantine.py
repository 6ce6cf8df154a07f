"""Liars in a round, played on scikit-learn's digits; runs in an environment that has that package.

Twenty peers with unlike data train a small network; the first four attack. Updates are merged by
the product: float32 rows, their Gram matrix, the rule's coefficients, the kernels. Digits / 16,
shuffled by the seed: 1,300 to train, 50 root data, 447 to test; a class is spread by Dirichlet(.3);
MLP 64-32-10, relu; 40 rounds of 8 steps, lr .3, batch 32; equal weights.
Source: federated-experiments E8 (docs/specs/rounds.md).
"""

from __future__ import annotations

import json
import sys

import numpy as np
from sklearn.datasets import load_digits

from federated.rounds.numeric import gram, kernels, order, rules

PEERS, LIARS, ROUNDS, STEPS, RATE, BATCH = 20, 4, 40, 8, 0.3, 32
HIDDEN = 32
SHAPES = ((64, HIDDEN), (HIDDEN,), (HIDDEN, 10), (10,))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
CUTS = np.cumsum(SIZES)[:-1]
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = IMAGES / 16


def layers(state):
    """The four arrays of a state."""
    return [part.reshape(shape) for part, shape in zip(np.split(state, CUTS), SHAPES, strict=True)]


def forward(state, images):
    """(hidden layer, outputs)."""
    first, first_bias, second, second_bias = layers(state)
    hidden = np.maximum(images @ first + first_bias, 0)
    return hidden, hidden @ second + second_bias


def gradient(state, images, labels):
    """Of the mean cross-entropy."""
    hidden, outputs = forward(state, images)
    outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    outputs /= outputs.sum(axis=1, keepdims=True)
    outputs[np.arange(len(labels)), labels] -= 1
    outputs /= len(labels)
    back = (outputs @ layers(state)[2].T) * (hidden > 0)
    parts = (images.T @ back, back.sum(axis=0), hidden.T @ outputs, outputs.sum(axis=0))
    return np.concatenate([part.ravel() for part in parts])


def trained(state, images, labels, rng):
    """The update of a peer that trains on its own data."""
    new = state.copy()
    for _ in range(STEPS):
        picked = rng.integers(0, len(labels), min(BATCH, len(labels)))
        new -= RATE * gradient(new, images[picked], labels[picked])
    return new - state


def spread(labels, rng):
    """Each peer's examples: every class by a draw of its own."""
    shares = [[] for _ in range(PEERS)]
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        cuts = np.cumsum(rng.dirichlet([0.3] * PEERS)) * len(members)
        for share, part in zip(shares, np.split(members, cuts.astype(int)[:-1]), strict=True):
            share.extend(part)
    few = len(labels)
    return [np.array(s) if len(s) > 3 else rng.integers(0, few, 8) for s in shares]


def attacked(updates, attack, rng):
    """What is sent, the first peers lying."""
    honest = updates[LIARS:]
    middle, spread_out = honest.mean(axis=0), honest.std(axis=0)
    sent = updates.copy()
    if attack == "minus3":
        sent[:LIARS] *= -3
    elif attack == "gauss":
        noise = rng.standard_normal((LIARS, len(middle)))
        sent[:LIARS] = noise * np.linalg.norm(middle) / np.sqrt(len(middle)) * 20
    elif attack == "alie":
        sent[:LIARS] = middle - spread_out
    elif attack == "ipm":
        sent[:LIARS] = -middle
    return sent


def merged(rule, rows, seed):
    """The product's merge: row 0 is the reference or the root's update."""
    coefficients = rules.coefficients(
        rule, gram.gram(rows), np.ones(PEERS), owners=range(PEERS), liars=LIARS, seed=seed
    )
    if rule == "median":
        return order.median(rows[1:], scales=coefficients[1:])
    if rule == "trimmed":
        return order.trimmed_mean(rows[1:], LIARS, scales=coefficients[1:])
    return kernels.combine(rows, coefficients)


def accuracy(rule, attack, seed):
    """Share of the test images that the merged network tells after 40 rounds."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(LABELS))
    images, labels = IMAGES[shuffled], LABELS[shuffled]
    shares = spread(labels[:1300], rng)
    state = np.concatenate(
        [(rng.standard_normal(s) * (0.15 if len(s) > 1 else 0)).ravel() for s in SHAPES]
    )
    reference = np.zeros(len(state))
    for number in range(ROUNDS):
        updates = []
        for peer, share in enumerate(shares):
            own = labels[share]
            if attack == "labels" and peer < LIARS:
                own = 9 - own
            updates.append(trained(state, images[share], own, rng))
        sent = np.array(updates)
        if attack not in ("none", "labels"):
            sent = attacked(sent, attack, rng)
        if rule == "fltrust":
            reference = trained(state, images[1300:1350], labels[1300:1350], rng)
        rows = list(np.vstack([reference, sent]).astype(np.float32))
        reference = merged(rule, rows, number.to_bytes(4, "little")).astype(np.float64)
        state = state + reference
    outputs = forward(state, images[1350:])[1]
    return float((outputs.argmax(axis=1) == labels[1350:]).mean())


def main():
    """Answer `RULE ATTACK SEEDS` with the mean accuracy over seeds 0..SEEDS-1."""
    print("ready", flush=True)
    for line in sys.stdin:
        rule, attack, seeds = line.split()
        found = [accuracy(rule, attack, seed) for seed in range(int(seeds))]
        print(json.dumps({"accuracy": float(np.mean(found))}), flush=True)


if __name__ == "__main__":
    main()
