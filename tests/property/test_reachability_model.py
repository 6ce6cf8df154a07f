"""Any history of what was seen: nobody is public without a proof, and no timer spins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from p2p.nat.reachability import Reach, Reachability
from p2p.nat.reachability_config import ReachabilityConfig

ADDRS: Final = tuple(f"/ip4/45.77.{n}.1/tcp/15001" for n in (1, 2, 3))
CONFIG: Final = ReachabilityConfig()


@dataclass(frozen=True)
class Step:
    """One thing that happens, some seconds after the last one."""

    what: str
    addr: str
    wait_s: float
    reached: int
    failed: int


STEPS: Final = st.builds(
    Step,
    st.sampled_from(
        ["proof", "nonce", "failed", "round", "network", "server", "no server", "have", "lose"]
    ),
    st.sampled_from(ADDRS),
    st.sampled_from([0.0, 1.0, 60.0, 900.0, 4000.0]),
    st.integers(0, 2),
    st.integers(0, 2),
)


@given(st.lists(STEPS, max_size=60))
def test_nobody_is_public_without_a_proof_and_no_timer_spins(steps: list[Step]) -> None:
    machine = Reachability(CONFIG)
    ours, proved, in_a_row = dict.fromkeys(ADDRS[:1], "interface"), set[str](), dict[str, int]()
    now = 0.0
    machine.set_candidates({ADDRS[0]: "interface"}, now)
    for step in steps:
        now += step.wait_s
        addr, mine = step.addr, step.addr in ours
        match step.what:
            case "proof" | "nonce":
                machine.reached(addr, "45.77.9.1", now, strong=step.what == "proof")
                in_a_row[addr] = 0
                if step.what == "proof" and mine:
                    proved.add(addr)
            case "failed":
                machine.failed(addr)
                in_a_row[addr] = in_a_row.get(addr, 0) + mine
                if in_a_row[addr] >= CONFIG.failures_max:
                    proved.discard(addr)
            case "round":
                machine.round_over(addr, now, reached=step.reached, failed=step.failed)
                assert machine.due(now) != addr
            case "network":
                machine.network_changed(now)
                proved.clear()
                in_a_row.clear()
            case "server":
                machine.new_server(now)
            case "no server":
                machine.no_server(addr)
                assert machine.due(now) != addr
            case "have" | "lose":
                ours.pop(addr, None)
                if step.what == "have":
                    ours[addr] = "interface"
                else:
                    proved.discard(addr)
                    in_a_row.pop(addr, None)
                machine.set_candidates(dict.fromkeys(ours, "interface"), now)
        for each in ADDRS:
            assert (machine.state_of(each) is Reach.PUBLIC) == (each in proved)
            assert (machine.state_of(each) is None) == (each not in ours)
        assert (machine.state is Reach.PUBLIC) == bool(proved)
        due = machine.due(now)
        assert (due is None) == (machine.next_timer() > now)
        assert machine.why()
