"""docs/specs/rpc.md and the code say the same numbers, names and bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2p import rpc_client, rpc_mesh, rpc_stream
from p2p.config import P2pConfig
from p2p.limits import (
    RPC_BODY_BYTES_MAX,
    RPC_CREDIT_BYTES_MAX,
    RPC_FRAME_BYTES_MAX,
    RPC_MESSAGE_CHARACTERS_MAX,
    RPC_METHOD_CHARACTERS_MAX,
    RPC_WINDOW_BYTES,
)
from p2p.rpc_call import State
from p2p.rpc_server import PROTOCOL
from p2p.rpc_types import CONCURRENT_MAX, Code
from tests.unit.test_rpc_frames import GOLDEN

USUAL = P2pConfig()
SPEC = " ".join(
    (Path(__file__).resolve().parents[2] / "docs/specs/rpc.md").read_text("utf-8").split()
)


@pytest.mark.parametrize(
    "sentence",
    [
        f"# Peer RPC, `{PROTOCOL}`",
        f"bytes of payload, at most {RPC_FRAME_BYTES_MAX}",
        f"A body has at most {RPC_BODY_BYTES_MAX} bytes",
        f"method str (1 to {RPC_METHOD_CHARACTERS_MAX} characters)",
        f"message str (at most {RPC_MESSAGE_CHARACTERS_MAX} characters)",
        f"The callee grants the caller {RPC_WINDOW_BYTES} bytes",
        f"Credit is never above {RPC_CREDIT_BYTES_MAX}",
        f"request or reply over {RPC_BODY_BYTES_MAX} bytes",
        f"{USUAL.rpc_calls_per_peer_max} calls of one peer, {USUAL.rpc_calls_max} in all",
        f"{CONCURRENT_MAX} of one method and peer",
        f"{USUAL.rpc_buffer_per_peer_bytes} unread bytes of one peer",
        f"items at their size plus {rpc_stream.ITEM_COST_BYTES}",
        f"at most {USUAL.rpc_idle_streams_max} idle streams to a peer",
        f"for at most {rpc_client.IDLE_S_MAX:.0f} s",
        f"After CANCEL a caller waits {rpc_client.SETTLE_S:.0f} s",
        f"`[bytes]`, at most {rpc_mesh.ECHO_BYTES_MAX}",
        f"at most {rpc_mesh.ASKED_PEERS_MAX} peer ids",
        f"each with at most {rpc_mesh.TOLD_ADDRS_MAX} addresses",
    ],
)
def test_the_specification_states_the_number_the_code_uses(sentence: str) -> None:
    assert sentence in SPEC


def test_the_specification_lists_every_code_once() -> None:
    listed = re.findall(r"\| (\d+) \| ([A-Z_]+) \|", SPEC)
    codes = [(int(number), name) for number, name in listed if name in Code.__members__]
    assert codes == [(code.value, code.name) for code in Code]


def test_the_specification_names_every_state() -> None:
    assert all(state.name in SPEC for state in State)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_specification_prints_the_vectors(name: str) -> None:
    assert f"`{GOLDEN[name][1]}`" in SPEC
