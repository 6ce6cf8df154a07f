"""Parts of a round: who reduces what, and what foolish or hostile joins change about it."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from federated.errors import UsageError
from federated.rounds.protocol.topology import (
    ALIGNMENT,
    CLAIM_MAX,
    RATE_MIN,
    REDUCERS_MAX,
    Part,
    PeerLink,
    parts,
    predicted,
    ranking,
)

MB = 1_000_000
NAMES = [bytes([number]) * 32 for number in range(200)]


def links(*rates: float, dialable: bool = True) -> list[PeerLink]:
    """Peers with these uplinks and five times the downlink."""
    return [
        PeerLink(NAMES[number], dialable=dialable, up=rate, down=5 * rate)
        for number, rate in enumerate(rates)
    ]


def test_a_small_payload_goes_whole_to_the_coordinator() -> None:
    roster = links(1e6, 9e6, 2e6)
    [part] = parts(100_000, roster, MB - 1, coordinator=NAMES[2])
    assert (part.start, part.n, part.reducer) == (0, 100_000, NAMES[2])
    assert part.standby in NAMES[:2]
    assert len(parts(100_000, roster, MB, coordinator=NAMES[2])) == 3


def test_parts_follow_the_slower_direction_of_each_link() -> None:
    roster = [
        PeerLink(b"a", dialable=True, up=3e6, down=9e6),
        PeerLink(b"b", dialable=True, up=9e6, down=1e6),
        PeerLink(b"c", dialable=False, up=9e9, down=9e9),
    ]
    cut = parts(4 * 1000 * ALIGNMENT, roster, 100 * MB)
    assert [(part.start, part.n, part.reducer) for part in cut] == [
        (0, 3000 * ALIGNMENT, b"a"),
        (3000 * ALIGNMENT, 1000 * ALIGNMENT, b"b"),
    ]


def test_nobody_dialable_or_one_makes_a_star_through_relays() -> None:
    hidden = links(1e6, 2e6, 3e6, dialable=False)
    [part] = parts(10**7, hidden, 40 * MB, coordinator=NAMES[1])
    assert (part.n, part.reducer) == (10**7, NAMES[1])
    assert part.standby in (NAMES[0], NAMES[2])
    [part] = parts(10**7, hidden, 40 * MB)
    assert part.reducer == ranking(NAMES[:3], b"", 0)[0]
    seen = [*hidden, PeerLink(NAMES[9], dialable=True, up=1.0, down=1.0)]
    [part] = parts(10**7, seen, 40 * MB)
    assert part.reducer == NAMES[9]


def test_a_peer_alone_is_its_own_standby() -> None:
    assert parts(5, links(1e6), 20) == (Part(0, 5, NAMES[0], NAMES[0]),)


def test_a_standby_is_dialable_where_another_is() -> None:
    roster = [*links(1e6, 1e6), PeerLink(NAMES[5], dialable=False, up=9e9, down=9e9)]
    for part in parts(10**6, roster, 4 * MB):
        assert {part.reducer, part.standby} == set(NAMES[:2])


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 0.2])
def test_rates_that_make_no_sense_share_equally(rate: float) -> None:
    cut = parts(40 * ALIGNMENT, links(rate, rate, rate, rate), 4 * MB)
    assert [part.n for part in cut] == [10 * ALIGNMENT] * 4


def test_a_rate_of_nothing_gets_no_part_beside_others() -> None:
    cut = parts(40 * ALIGNMENT, links(1e6, 0.0, float("nan"), 1e6), 4 * MB)
    assert [part.reducer for part in cut] == [NAMES[0], NAMES[3]]


@pytest.mark.attack
def test_a_liar_about_its_link_never_gets_the_round() -> None:
    honest = links(*[2.5e6] * 19)
    liar = PeerLink(NAMES[50], dialable=True, up=1e300, down=1e300)
    total = 10_000 * ALIGNMENT
    [own] = [p for p in parts(total, [*honest, liar], 100 * MB) if p.reducer == NAMES[50]]
    assert own.n / total == pytest.approx(CLAIM_MAX / (CLAIM_MAX + 19), rel=0.01)
    assert own.standby != NAMES[50]


def test_a_roster_beyond_the_limit_uses_its_fastest_reducers() -> None:
    roster = links(*[1e6 + number for number in range(100)])
    cut = parts(10**6 * 100, roster, 400 * MB)
    assert len(cut) == REDUCERS_MAX
    assert {part.reducer for part in cut} == set(NAMES[100 - REDUCERS_MAX : 100])


def test_fewer_blocks_than_reducers_leave_some_without_a_part() -> None:
    cut = parts(2 * ALIGNMENT + 1, links(*[1e6] * 10), MB)
    assert sum(part.n for part in cut) == 2 * ALIGNMENT + 1
    assert len(cut) == 3


def test_the_ranking_is_that_of_the_specification() -> None:
    group = b"g" * 32

    def place(peer: bytes, part: bytes = b"") -> bytes:
        return hashlib.sha256(group + (7).to_bytes(8, "big") + peer + part).digest()

    order = sorted(NAMES[:9], key=place, reverse=True)
    assert list(ranking(NAMES[:9], group, 7)) == order
    third = sorted(NAMES[:9], key=lambda peer: place(peer, b"\0\0\0\3"), reverse=True)
    assert list(ranking(NAMES[:9], group, 7, 3)) == third


def test_standbys_of_a_reducer_that_dies_differ_between_parts() -> None:
    roster = links(*[1e6] * 30)
    standbys = Counter(
        part.standby
        for number in range(50)
        for part in parts(30 * ALIGNMENT, roster, 4 * MB, round_number=number)
    )
    assert len(standbys) == 30
    assert max(standbys.values()) < 3 * 50


@pytest.mark.parametrize(
    ("total", "roster", "coordinator"),
    [
        (10, [], None),
        (0, links(1e6), None),
        (10, links(1e6), NAMES[7]),
        (10, [*links(1e6), *links(1e6)], None),
    ],
)
def test_what_cannot_be_cut_is_a_usage_error(
    total: int, roster: list[PeerLink], coordinator: bytes | None
) -> None:
    with pytest.raises(UsageError):
        parts(total, roster, 10, coordinator=coordinator)


def test_predicted_phases_of_three_equal_peers_by_hand() -> None:
    # Each sends two thirds up, takes its third from two others; then sends its third to two.
    roster = links(1e6, 1e6, 1e6)
    cut = parts(300 * ALIGNMENT, roster, 3 * MB)
    phases = predicted(cut, roster, 3 * MB, MB)
    assert phases.scatter_s == pytest.approx(2.0)
    assert phases.gather_s == pytest.approx(2 / 3)


def test_predicted_phases_of_a_star_by_hand() -> None:
    roster = links(1e6, 1e6, 1e6, 1e6)
    cut = parts(1000, roster, MB // 2, coordinator=NAMES[0])
    phases = predicted(cut, roster, MB // 2, MB // 2)
    assert phases.scatter_s == pytest.approx(0.5)
    assert phases.gather_s == pytest.approx(1.5)


@pytest.mark.parametrize("rate", [0.0, -5.0, float("nan"), 1.0])
def test_a_claim_to_be_slow_stretches_no_phase_beyond_a_limit(rate: float) -> None:
    roster = [*links(1e6, 1e6), PeerLink(NAMES[9], dialable=False, up=rate, down=rate)]
    phases = predicted(parts(10**6, roster, 4 * MB), roster, 4 * MB, 4 * MB)
    assert phases.scatter_s == phases.gather_s == 4 * MB / RATE_MIN
