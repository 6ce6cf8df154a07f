"""Trust for any evidence: order-free, bounded, and nothing moves that has no weight."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.bodies import VerdictBody
from memory.trust.flow import flow, upstream
from memory.trust.rules import KINDS, TRUST_MAX, Evidence, fold
from tests.helpers.memories import HOME, Peer, World, note_body, open_world

NOW = 1_700_000_000_000
DAY_MS = 86_400_000
WEIGHTLESS = ("stale", "fork")

kinds = st.sampled_from(sorted(KINDS))
pieces = st.lists(
    st.builds(
        lambda n, kind, at, memory, owner, voter, weight: Evidence(
            (NOW + at) << 16,
            n.to_bytes(4, "big"),
            kind,
            NOW + at,
            memory,
            memory,
            bytes([owner]),
            f"v{voter}",
            weight,
        ),
        st.integers(0, 2**32 - 1),
        kinds,
        st.integers(0, 400 * DAY_MS),
        st.integers(0, 4),
        st.integers(0, 3),
        st.integers(0, 3),
        st.one_of(st.none(), st.floats(0, 1)),
    ),
    max_size=40,
    unique_by=lambda piece: (piece.hlc, piece.id),
)


@given(pieces, st.randoms(use_true_random=False), st.sampled_from([0.0, 2.0, 16.0]))
def test_the_fold_is_free_of_the_order_of_delivery(
    evidence: list[Evidence], rng: object, start: float
) -> None:
    wanted, _ = fold(start, evidence, NOW, flow=2, flow_against=2)
    shuffled = list(evidence)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    found, _ = fold(start, shuffled, NOW, flow=2, flow_against=2)
    assert (found.s, found.f) == (wanted.s, wanted.f)
    assert 0 <= found.trust() <= TRUST_MAX


@given(pieces, pieces)
def test_weightless_evidence_moves_nothing(evidence: list[Evidence], more: list[Evidence]) -> None:
    taken = {(piece.hlc, piece.id) for piece in evidence}
    light = [
        piece._replace(kind=WEIGHTLESS[at % 2])
        for at, piece in enumerate(more)
        if (piece.hlc, piece.id) not in taken
    ]
    plain, _ = fold(2.0, evidence, NOW + 500 * DAY_MS, flow=2, flow_against=2)
    mixed, _ = fold(2.0, evidence + light, NOW + 500 * DAY_MS, flow=2, flow_against=2)
    assert (mixed.s, mixed.f) == (plain.s, plain.f)


owners = st.integers(0, 7).map(lambda n: bytes([n]))


@given(
    st.sets(owners, max_size=3),
    st.lists(st.tuples(owners, owners), max_size=20),
    st.sets(owners, max_size=6),
)
def test_flow_is_bounded_by_both_ends_and_grows_with_endorsements(
    first: set[bytes], edges: list[tuple[bytes, bytes]], targets: set[bytes]
) -> None:
    found = flow(first, edges, targets)
    assert 0 <= found <= min(len(first), len(targets)) or found <= len(targets & first)
    assert flow(first, edges[:-1], targets) <= found
    assert found <= flow(first | {b"x"}, [*edges, (b"x", b"y")], targets | {b"y"})


def test_an_owner_passes_on_one_unit_however_many_endorse_it() -> None:
    first = {b"a", b"b", b"c"}
    sybils = {b"sybil%d" % n for n in range(100)}
    ring = [(owner, b"m") for owner in first] + [(b"m", one) for one in sorted(sybils)]
    assert flow(first, ring, sybils) == 1
    assert flow(first, [*ring, *((b"a", one) for one in sorted(sybils))], sybils) == 2


@given(
    st.sets(owners, max_size=4),
    st.lists(st.tuples(owners, owners), max_size=20),
    st.sets(owners, min_size=1, max_size=6),
)
def test_only_owners_upstream_of_the_targets_carry_flow_to_them(
    first: set[bytes], edges: list[tuple[bytes, bytes]], targets: set[bytes]
) -> None:
    assert flow(first & set(upstream(edges, targets)), edges, targets) == flow(
        first, edges, targets
    )


@settings(max_examples=12)
@given(st.permutations(range(12)), st.integers(1, 5))
def test_folded_as_it_comes_it_stands_as_folded_from_scratch(order: list[int], batch: int) -> None:
    """Verdicts before and after their targets, in any order and batches: the same standings."""

    async def standing(order: list[int], batch: int) -> list[tuple[object, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            async with open_world(Path(folder), inline=True) as world:
                records = _records(world)
                for at in range(0, len(order), batch):
                    chosen = [records[n] for n in order[at : at + batch]]
                    await world.replica.admit(HOME, chosen)
                await world.desk.settle()
                return await world.sql(
                    "SELECT a.device, a.agent, round(a.trust, 9), round(a.s, 9), round(a.f, 9)"
                    " FROM author a ORDER BY 1, 2"
                ) + await world.sql(
                    "SELECT r.id, round(m.eff_trust, 9), m.backed, m.confirmations FROM memory m"
                    " JOIN record r ON r.n = m.id ORDER BY 1"
                )

    assert trio.run(standing, order, batch) == trio.run(standing, list(range(12)), 12)


def _records(world: World) -> list[object]:  # the same twelve records each time
    peers = [Peer(world.clock, seed) for seed in (7, 8, 9)]
    notes = [
        peer.write(HOME, note_body(f"fact {n}", agent=f"p{n}"), "invited")
        for n, peer in enumerate(peers)
    ]
    verdicts = []
    for at in range(9):
        judge, target = peers[at % 3], notes[(at + 1 + at // 3) % 3]
        outcome = ("useful", "harmful", "useful")[at // 3]
        body = VerdictBody(f"j{at % 3}", target.id, outcome, "outcome", None, None)  # type: ignore[arg-type]
        verdicts.append(judge.write(HOME, body, "invited"))
    return [*notes, *verdicts]
