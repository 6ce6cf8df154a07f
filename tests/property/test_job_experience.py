"""Experience, whatever jobs it has seen: sizes that are allowed, seconds that add up."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from federated.jobs.experience import SIZES, Experience, Outcome, Tried, spent

SECONDS = st.floats(0, 1e6)
OUTCOMES = st.builds(
    Outcome,
    handler=st.sampled_from(["a@1", "a@2", "b@1"]),
    rows=st.integers(0, 1000),
    input_bytes=st.integers(0, 2**30),
    slots=st.integers(0, 100),
    batch=st.sampled_from(["auto", "per_row", "chunk", "open", "by_attr"]),
    size=st.integers(1, 32),
    verified=st.floats(0, 1),
    cost_s=SECONDS,
    delay_s=SECONDS,
    rows_good=st.integers(0, 2000),
    rows_bad=st.integers(0, 2000),
)
TICKS = st.integers(0, 40)
ATTEMPTS = st.lists(
    st.builds(
        lambda device, start, took: Tried(device, float(start + took), float(took)),
        st.sampled_from([b"x", b"y"]), TICKS, TICKS,
    ),
    max_size=12,
)  # fmt: skip


@given(st.lists(OUTCOMES, max_size=40), st.integers(0, 2000), st.integers(1, 40))
def test_every_choice_is_a_size_the_job_and_the_handler_take(
    outcomes: list[Outcome], rows: int, most: int
) -> None:
    known = Experience(outcomes)
    for handler in ("a@1", "b@1", "new@1"):
        choice = known.choose(handler, rows=rows, input_bytes=rows * 100, most=most)
        assert choice.size in SIZES
        assert choice.size <= max(1, min(rows, most))
        assert choice == known.choose(handler, rows=rows, input_bytes=rows * 100, most=most)


@given(st.lists(OUTCOMES, max_size=40), st.integers(0, 40))
def test_what_was_learned_is_the_same_after_a_restart(outcomes: list[Outcome], cut: int) -> None:
    whole, grown = Experience(outcomes), Experience(outcomes[:cut])
    for outcome in outcomes[cut:]:
        grown.learn(outcome)
    for handler in ("a@1", "a@2", "b@1"):
        asked = {"rows": 64, "input_bytes": 6400}
        assert whole.choose(handler, **asked) == grown.choose(handler, **asked)


@given(OUTCOMES)
def test_a_share_is_a_share_and_utility_no_more(outcome: Outcome) -> None:
    assert 0.0 <= outcome.share <= 1.0
    assert outcome.utility <= outcome.share


@given(ATTEMPTS, st.integers(1, 4))
def test_work_is_counted_as_second_by_second(attempts: list[Tried], slots: int) -> None:
    cost_s, delay_s = spent(attempts, lambda _device: slots)
    slow = 0.0
    for device in (b"x", b"y"):
        mine = [one for one in attempts if one.device == device]
        marks = sorted({at for one in mine for at in (one.ended_s - one.took_s, one.ended_s)})
        held = sum(
            b - a for a, b in pairwise(marks)
            if any(one.ended_s - one.took_s <= a and b <= one.ended_s for one in mine)
        )  # fmt: skip
        slow += min(sum(one.took_s for one in mine), held * slots)
    assert cost_s == slow
    ends = [at for one in attempts for at in (one.ended_s - one.took_s, one.ended_s)]
    assert delay_s == (max(ends) - min(ends) if ends else 0.0)
