"""Streaming DiLoCo: training that talks every H steps, a fragment at a time, without waiting.

Theory of operation
-------------------
Each member trains its own copy theta of the model with any inner optimiser. The outer optimiser
keeps the common copy G and its momentum m, the same bits on all members. The parameters are dealt
out to P fragments, and each fragment is synchronised every H inner steps, at its own offset, so
that a small part of the model travels at a time:

    t = offset + k H    delta = G - theta is sent as `Sync`; training goes on
    (a round)           d = weighted mean of the members' deltas, the same bits for all
    when d is there     m <- mu m + d;  G <- G - lr (d + mu m)
    t + tau, or later   theta <- alpha theta + (1 - alpha) G       (tau = 0: theta <- G)

G takes its step as soon as d is there, so that a member can hand it on at once; theta, which its
trainer uses, only after `overlap` = tau steps, or as soon after as d is there.

*A sync that fails loses nothing.* The delta is against G, not against the last theta sent: what a
failed round did not carry is in the next one, with the tokens it was made of.

*What does not come in time is skipped.* At most `in_flight_max` fragments are under way; a further
one waits for its next turn. `after_inner_step` never blocks and does no input or output: a driver
runs the rounds that `Sync` asks for and reports `merged` or `failed`.

*Equal copies.* The root of a fragment is the hash of its G and m. A round starts from it, and a
result that starts from another root is not applied: `Fetch` asks the driver for the state that the
others have, and `adopt` takes it if it has the root that their `apply` proves.

*Who missed rounds* knows their sum, not each: G - lr mu^2 / (1 - mu) m moves by lr / (1 - mu) times
the sum whatever the order, and m is taken as if all of them had been alike. What that gets wrong
shrinks by mu with every later round, in m and in G. theta moves along with G, so that what it
learned meanwhile is in its next difference: `missed`.

*A member that diverged* (a value that is not finite) sends nothing, and takes G over entirely.

Sources: arXiv 2311.08105 (DiLoCo), 2501.18512 (streaming, overlap, 4 bits), 2604.21428 (quorum,
grace, token weights); docs/specs/rounds.md, *Outer optimiser*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from federated.errors import UsageError
from federated.rounds.training.arrays import BLOCK, fragments, mix, moved, view
from federated.rounds.training.fragment import Fragment, diverged, from_limbs, joined, limbs, start
from federated.rounds.training.outer_words import Applied, Fetch, OuterConfig, Skipped, Sync
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.rounds.training.arrays import F32, Array
    from federated.rounds.training.outer_words import Request

STALE_SYNCS: Final = 3
"""Intervals of training that a weight counts for at most, as the plan caps weights at 3 medians."""

COUNT_MAX: Final = 2**53


class Outer:
    """The outer optimiser of one member.

    Args:
        params: name to parameter, the same values on all members, or those of `saved`'s member.
        config: the same on all members.
        saved: what `save` gave.

    Raises:
        UsageError: parameters that are none, or `saved` of another model or configuration.

    *Invariant*: G and m change in `merged`, `missed` and `adopt` alone, by numbers that all members
    share.
    """

    def __init__(
        self,
        params: Mapping[str, object],
        config: OuterConfig | None = None,
        *,
        saved: Mapping[str, F32] | None = None,
    ) -> None:
        self.config = config or OuterConfig()
        self._step = 0
        parts = fragments(list(params), self.config.fragments)
        self._fragments = [
            start(names, params, index * self.config.inner_steps // len(parts))
            for index, names in enumerate(parts)
        ]
        if saved is not None:
            self._load(saved)
        for part in self._fragments:
            part.hash()

    @property
    def step_count(self) -> int:
        """The last inner step."""
        return self._step

    @property
    def fragment_names(self) -> tuple[tuple[str, ...], ...]:
        """The parameters of each fragment, in the order in which they travel."""
        return tuple(part.names for part in self._fragments)

    def size(self, fragment: int) -> int:
        """Values of a fragment."""
        return len(self._of(fragment).common)

    def root(self, fragment: int) -> bytes:
        """What a fragment's round starts from: the hash of its G and m."""
        return self._of(fragment).root

    def last_failure(self, fragment: int) -> str:
        """Why the fragment's last round failed; empty if it did not."""
        return self._of(fragment).failure

    def common(self) -> dict[str, F32]:
        """G by name: what the members have agreed on. Copies."""
        return {
            name: array.copy()
            for part in self._fragments
            for name, array in part.tensors(part.common).items()
        }

    # -- the trainer's side

    def step(self, params: Mapping[str, object], tokens: int = 1) -> list[Request]:
        """`after_inner_step` for the next step."""
        return self.after_inner_step(self._step + 1, params, tokens)

    def after_inner_step(
        self, t: int, params: Mapping[str, object], tokens: int = 1
    ) -> list[Request]:
        """Take over what has been merged, and start the syncs that fall due. Never blocks.

        Args:
            t: the inner step just done, counted from 1; steps may be left out.
            params: the trainer's parameters, written in place where that can be done.
            tokens: that the step, or the steps since the last call, were made of.

        Raises:
            UsageError: a step that is not later than the last, or parameters of another shape.
        """
        if t <= self._step or not 0 <= tokens <= COUNT_MAX:
            raise UsageError(f"step {t} after {self._step}, tokens {tokens}: both only grow")
        last, self._step = self._step, t
        for part in self._fragments:
            part.tokens = min(part.tokens + tokens, COUNT_MAX)
        requests = self.apply(params)
        interval = self.config.inner_steps
        for index, part in enumerate(self._fragments):
            if part.turns(t, interval) > part.turns(last, interval):
                requests.append(self._sync(index, part, params))
        return requests

    def apply(self, params: Mapping[str, object]) -> list[Request]:
        """Take over what has been merged and is due at the last step.

        `after_inner_step` does so first; with `overlap` 0 a driver calls this once its rounds have
        been merged, before the next step.
        """
        done: list[Request] = []
        for index, part in enumerate(self._fragments):
            if part.moved is not None:
                done.append(Applied(index, self._move(part, params)))
            if part.due is not None and part.due <= self._step:
                part.due = None
                done.append(Applied(index, self._mix(part, params)))
        return done

    def _mix(self, part: Fragment, params: Mapping[str, object]) -> dict[str, Array]:
        own = _seen(part, params)
        alpha = self.config.alpha if self.config.overlap else 0.0
        if any(diverged(array) for array in own.values()):
            alpha = 0.0
        common = part.tensors(part.common)
        return {name: mix(array, common[name], alpha) for name, array in own.items()}

    @staticmethod
    def _move(part: Fragment, params: Mapping[str, object]) -> dict[str, Array]:
        assert part.moved is not None
        by = part.tensors(part.moved)
        part.moved = None
        return {name: moved(array, by[name]) for name, array in _seen(part, params).items()}

    def _sync(self, index: int, part: Fragment, params: Mapping[str, object]) -> Sync | Skipped:
        under_way = sum(other.sent is not None for other in self._fragments)
        if part.fetching:
            return Skipped(index, "fetching")
        if part.sent is not None or under_way >= self.config.in_flight_max:
            return Skipped(index, "in_flight")
        if not part.tokens:
            return Skipped(index, "idle")
        own = _seen(part, params)
        delta = np.empty_like(part.common)
        common = part.tensors(part.common)
        with np.errstate(invalid="ignore", over="ignore"):
            for name, place in part.tensors(delta).items():
                np.subtract(common[name], own[name], out=place, casting="same_kind")
        if diverged(delta):
            return Skipped(index, "diverged")
        part.sent = (self._step, part.tokens)
        return Sync(
            index,
            part.root,
            delta,
            self._weight(part),
            self._step + self.config.overlap,
            self.config.codec,
        )

    def _weight(self, part: Fragment) -> float:
        """Tokens since the last sync that was merged, of `STALE_SYNCS` intervals at most."""
        most = STALE_SYNCS * self.config.inner_steps
        return part.tokens * min(1.0, most / max(1, self._step - part.synced_at))

    # -- the driver's side

    def merged(self, fragment: int, base_root: bytes, d: F32) -> list[Request]:
        """The result of a round, whether this member took part in it or not.

        Args:
            fragment: its index.
            base_root: what the round started from.
            d: float32[n], the merged difference, decoded: the same bits on all members.

        Returns:
            `Fetch` if the round started from another state than this member's; else nothing.

        Raises:
            UsageError: another length, or a value that is not finite; nothing has changed.
        """
        part = self._checked(fragment, d)
        if base_root != part.root:
            # Told twice is no reason to fetch.
            return [] if base_root == part.root_before else self._ahead(fragment, part)
        self._outer_step(part, d)
        part.root_before = part.root
        self._took_over(part)
        return []

    def missed(self, fragment: int, rounds: int, total: F32) -> None:
        """Rounds whose results this member did not see one by one; its own difference is kept.

        Args:
            fragment: its index.
            rounds: how many.
            total: float32[n], the sum of their merged differences.

        Raises:
            UsageError: no round, another length, or a value that is not finite.
        """
        part = self._checked(fragment, total)
        if rounds < 1:
            raise UsageError(f"{rounds} rounds missed")
        mu, rate = self.config.momentum, self.config.rate
        weight = (1 - mu**rounds) / (1 - mu) / rounds
        momentum = np.float32(mu**rounds) * part.momentum + np.float32(weight) * total
        per_momentum = np.float32(rate * mu * mu / (1 - mu))
        by = per_momentum * (momentum - part.momentum) - np.float32(rate / (1 - mu)) * total
        part.common += by
        part.momentum = momentum
        part.hash()
        part.sent = None
        part.failure = "missed"
        if part.due is None:  # else theta takes all of G over at its next step
            part.moved = by if part.moved is None else part.moved + by

    def _checked(self, fragment: int, d: F32) -> Fragment:
        part = self._of(fragment)
        if d.dtype != np.float32 or d.shape != part.common.shape or not np.isfinite(d).all():
            raise UsageError(f"fragment {fragment}: a result is {part.common.shape[0]} numbers")
        return part

    def _outer_step(self, part: Fragment, d: F32) -> None:
        """One multiplication and one addition at a time: the same bits on all IEEE machines."""
        momentum, rate = np.float32(self.config.momentum), np.float32(self.config.rate)
        scratch = np.empty(min(len(d), BLOCK), np.float32)
        with np.errstate(over="ignore"):
            for start in range(0, len(d), BLOCK):
                rows = slice(start, start + BLOCK)
                told, kept = d[rows], part.momentum[rows]
                step = scratch[: len(told)]
                kept *= momentum
                kept += told
                np.multiply(kept, momentum, out=step)
                step += told
                step *= rate
                part.common[rows] -= step

    def _took_over(self, part: Fragment) -> None:
        part.hash()
        part.due = self._step
        part.failure = ""
        if part.sent is not None:
            sent_at, tokens = part.sent
            part.sent = None
            part.due = max(self._step, sent_at + self.config.overlap)
            part.tokens -= tokens
            part.synced_at = sent_at

    def _ahead(self, fragment: int, part: Fragment) -> list[Request]:
        part.sent = None
        part.failure = "other_base"
        if part.fetching:
            return []
        part.fetching = True
        return [Fetch(fragment)]

    def failed(self, fragment: int, reason: str) -> None:
        """A fragment's round, or the fetch of its state, came to nothing; its next turn comes."""
        part = self._of(fragment)
        part.sent = None
        part.fetching = False
        part.failure = reason

    # -- states

    def fragment_state(self, fragment: int) -> dict[str, F32]:
        """What `adopt` of another member takes: `G/name` and `m/name`, copies."""
        part = self._of(fragment)
        found = {f"G/{name}": array for name, array in part.tensors(part.common).items()}
        found |= {f"m/{name}": array for name, array in part.tensors(part.momentum).items()}
        return {name: array.copy() for name, array in found.items()}

    def adopt(self, fragment: int, state: Mapping[str, F32], root: bytes) -> None:
        """Take over the state that the others have; the own difference is mixed in as ever.

        Args:
            fragment: its index.
            state: another member's `fragment_state`.
            root: what that state must hash to, from the lineage's proof.

        Raises:
            DecodeError: other tensors, a value that is not finite, or another root; nothing has
                changed.
        """
        part = self._of(fragment)
        fresh = Fragment(
            part.names,
            part.shapes,
            part.offset,
            joined(part, state, "G"),
            joined(part, state, "m"),
        )
        fresh.hash()
        if fresh.root != root:
            raise DecodeError("the state of a fragment has another root")
        part.common, part.momentum = fresh.common, fresh.momentum
        part.fetching = False
        part.sent = None
        self._took_over(part)

    def save(self) -> dict[str, F32]:
        """All that is needed to go on after a restart, as arrays of float32; see `saved`.

        A sync under way is not part of it: to the member that comes back it has failed.
        """
        found: dict[str, F32] = {}
        for index in range(len(self._fragments)):
            found |= self.fragment_state(index)
        counts = [self._step]
        for part in self._fragments:
            counts += [part.tokens, part.synced_at]
        return found | {"counts": limbs(counts)}

    def _load(self, saved: Mapping[str, F32]) -> None:
        try:
            states = [
                (joined(part, saved, "G"), joined(part, saved, "m")) for part in self._fragments
            ]
            counts = from_limbs(saved.get("counts"), 1 + 2 * len(states))
        except DecodeError as error:
            raise UsageError(f"a saved state of another model: {error}") from error
        self._step = counts[0]
        for index, (part, state) in enumerate(zip(self._fragments, states, strict=True)):
            part.common, part.momentum = state
            part.tokens, part.synced_at = counts[1 + 2 * index : 3 + 2 * index]

    def _of(self, fragment: int) -> Fragment:
        if not 0 <= fragment < len(self._fragments):
            raise UsageError(f"no fragment {fragment}")
        return self._fragments[fragment]


def _seen(part: Fragment, params: Mapping[str, object]) -> dict[str, Array]:
    """The trainer's parameters of a fragment, not copied."""
    found = {name: view(name, params[name]) for name in part.names}
    for name, array in found.items():
        if array.shape != part.shapes[name]:
            raise UsageError(f"parameter {name!r} has another shape than before")
    return found
