"""Members of the outer optimiser hold the same bits, whatever fails, is late or is missing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from federated.rounds.training.local import merge
from federated.rounds.training.outer import Outer
from federated.rounds.training.outer_words import Fetch, OuterConfig, Sync

MEMBERS = 3
SIZES = {"emb": 7, "l1.w": 300, "l1.b": 1, "l2.w": 5, "out": 64}


def fresh() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(n).astype(np.float32) for name, n in SIZES.items()}


configs = st.builds(
    OuterConfig,
    inner_steps=st.integers(6, 9),
    fragments=st.integers(1, 4),
    overlap=st.integers(0, 5),
    alpha=st.sampled_from([0.0, 0.2, 0.5]),
    codec=st.sampled_from(["f32", "int8", "e3m0"]),
)


@given(configs, st.data())
def test_copies_stay_equal_bit_by_bit(config: OuterConfig, data: st.DataObject) -> None:
    params = [fresh() for _ in range(MEMBERS)]
    outers = [Outer(own, config) for own in params]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    waiting: dict[int, tuple[int, list[Sync | None]]] = {}
    for t in range(1, 41):
        asked: dict[int, list[Sync | None]] = {}
        for number, (outer, own) in enumerate(zip(outers, params, strict=True)):
            for value in own.values():
                np.add(
                    value, 0.1 * rng.standard_normal(value.shape), out=value, casting="same_kind"
                )
            for request in outer.after_inner_step(t, own):
                if isinstance(request, Sync):
                    asked.setdefault(request.fragment, [None] * MEMBERS)[number] = request
        for fragment, told in asked.items():
            waiting[fragment] = (t + data.draw(st.integers(0, 8)), told)
        for fragment in [one for one, (due, _) in waiting.items() if due <= t]:
            settle(outers, fragment, waiting.pop(fragment)[1], data)
        for outer, own in zip(outers, params, strict=True):
            outer.apply(own)
        for fragment in range(len(outers[0].fragment_names)):
            states = [outer.fragment_state(fragment) for outer in outers]
            for name, array in states[0].items():
                assert all(state[name].tobytes() == array.tobytes() for state in states)
            assert len({outer.root(fragment) for outer in outers}) == 1


def settle(
    outers: list[Outer], fragment: int, told: list[Sync | None], data: st.DataObject
) -> None:
    """A round: it fails for all, or merges what some sent; one member may hear of it by a fetch."""
    there = [number for number, sync in enumerate(told) if sync is not None]
    included = data.draw(st.lists(st.sampled_from(there), unique=True))
    if not included:
        for outer in outers:
            outer.failed(fragment, "below_quorum")
        return
    syncs = [sync for number in included if (sync := told[number]) is not None]
    d = merge(
        syncs[0].codec, [(sync.encoded(), sync.weight) for sync in syncs], len(syncs[0].delta)
    )
    absent = data.draw(st.sampled_from([None, *range(MEMBERS)]))
    for number, outer in enumerate(outers):
        if number not in included:
            outer.failed(fragment, "late")
        if number != absent:
            assert outer.merged(fragment, syncs[0].base_root, d) == []
    if absent is not None:
        other = outers[(absent + 1) % MEMBERS]
        assert outers[absent].merged(fragment, other.root(fragment), d) == [Fetch(fragment)]
        outers[absent].adopt(fragment, other.fragment_state(fragment), other.root(fragment))


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 5))
def test_failed_syncs_lose_nothing(outcomes: list[bool], steps: int) -> None:
    """With a plain sum as outer step the common copy is, after a success, what was trained."""
    config = OuterConfig(
        inner_steps=steps, fragments=1, overlap=0, alpha=0, rate=1, momentum=0, codec="f32"
    )
    params = {"w": np.zeros(3, np.float32)}
    outer = Outer(params, config)
    trained, tokens = 0, 0
    for merges in outcomes:
        for _ in range(steps):
            params["w"] += 1
            requests = outer.step(params, tokens=10)
            trained, tokens = trained + 1, tokens + 10
        [sync] = [request for request in requests if isinstance(request, Sync)]
        assert sync.weight == min(tokens, 3 * steps * 10)
        if merges:
            outer.merged(0, sync.base_root, sync.delta)
            outer.apply(params)
            tokens = 0
            assert outer.common()["w"].tolist() == [trained] * 3
        else:
            outer.failed(0, "below_quorum")
        assert params["w"].tolist() == [trained] * 3


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_without_overlap_it_is_diloco_in_double_precision(seed: int, rounds: int) -> None:
    config = OuterConfig(inner_steps=3, fragments=1, overlap=0, alpha=0, codec="f32")
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(20)
    params = [{"w": start.astype(np.float32)} for _ in range(2)]
    outers = [Outer(own, config) for own in params]
    common, momentum = params[0]["w"].astype(np.float64), np.zeros(20)
    for number in range(1, rounds + 1):
        moves = rng.standard_normal((2, 20)).astype(np.float32)
        syncs = []
        for own, outer, move in zip(params, outers, moves, strict=True):
            own["w"] -= move
            syncs += [r for r in outer.after_inner_step(3 * number, own) if isinstance(r, Sync)]
        d = merge("f32", [(sync.encoded(), sync.weight) for sync in syncs], 20)
        for own, outer in zip(params, outers, strict=True):
            outer.merged(0, syncs[0].base_root, d)
            outer.apply(own)
        mean = moves.astype(np.float64).mean(0)
        momentum = 0.9 * momentum + mean
        common -= 0.7 * (mean + 0.9 * momentum)
        assert np.allclose(params[0]["w"], common, atol=1e-5)
        assert np.array_equal(params[0]["w"], params[1]["w"])
