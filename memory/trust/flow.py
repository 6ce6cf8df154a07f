"""How much of the person's endorsement reaches a set of owners: maximum flow, one unit an owner.

Each owner can pass on one unit, however many names, devices and friends it has (Levien and Aiken,
Advogato, 1998): a hundred made-up owners behind one endorsed owner carry one unit together. Pure.
Source: docs/specs/memory.md, *Trust*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Edge = tuple[bytes, bytes]
"""(who endorses, who is endorsed), owner keys."""


def flow(first: Collection[bytes], edges: Iterable[Edge], targets: Collection[bytes]) -> int:
    """Units that reach the targets from the person.

    Args:
        first: owners whom the person endorsed, invited, or knows from own evidence.
        edges: endorsements among owners.
        targets: owners whose voices are to be counted.

    Returns:
        The maximum flow with capacity 1 an owner: at most the number of targets.
    """
    wanted = frozenset(targets)
    if not wanted or not first:
        return 0
    if wanted <= frozenset(first):
        return len(wanted)
    among = sorted(edges)
    if len(wanted) == 1:
        return int(_reaches(first, among, wanted))
    return _maximum(first, among, wanted)


def upstream(edges: Iterable[Edge], targets: Collection[bytes]) -> list[bytes]:
    """The targets and whoever endorses them, directly or through others."""
    back: dict[bytes, list[bytes]] = {}
    for src, dst in edges:
        back.setdefault(dst, []).append(src)
    seen = dict.fromkeys(sorted(targets))
    waiting = list(seen)
    while waiting:
        for src in back.get(waiting.pop(), ()):
            if src not in seen:
                seen[src] = None
                waiting.append(src)
    return list(seen)


def _reaches(first: Collection[bytes], edges: list[Edge], wanted: frozenset[bytes]) -> bool:
    onward: dict[bytes, list[bytes]] = {}
    for src, dst in edges:
        onward.setdefault(src, []).append(dst)
    seen = set(first)
    waiting = sorted(first)
    while waiting:
        owner = waiting.pop()
        if owner in wanted:
            return True
        for dst in onward.get(owner, ()):
            if dst not in seen:
                seen.add(dst)
                waiting.append(dst)
    return False


def _maximum(first: Collection[bytes], edges: list[Edge], wanted: frozenset[bytes]) -> int:
    # Imported at first use: .4 s and 24 MB that most nodes never need.
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()  # type: ignore[explicit-any] # of the stubs
    # An owner is two nodes with one unit between them: what enters it is what it can pass on.
    owners = {*first, *wanted, *(owner for edge in edges for owner in edge)}
    for owner in sorted(owners):
        graph.add_edge(f"in {owner.hex()}", f"out {owner.hex()}", capacity=1)
    for owner in sorted(first):
        graph.add_edge("person", f"in {owner.hex()}", capacity=1)
    for src, dst in edges:
        graph.add_edge(f"out {src.hex()}", f"in {dst.hex()}", capacity=1)
    for owner in sorted(wanted):
        graph.add_edge(f"out {owner.hex()}", "voices", capacity=1)
    return int(nx.maximum_flow_value(graph, "person", "voices"))
