"""The numbers in the code are those in docs/specs/wire.md, and the table of states is the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p import limits
from p2p.config import P2pConfig
from p2p.errors import UsageError
from p2p.wire.yamux_frames import STREAM_TRANSITIONS, StreamInput, StreamState

SPEC = (Path(__file__).parents[2] / "docs" / "specs" / "wire.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "said",
    [
        f"at most {limits.MULTISTREAM_LINE_BYTES_MAX} bytes. Both sides",
        f"after {limits.MULTISTREAM_PROPOSALS_MAX} unknown proposals",
        f"handshake messages at most {limits.NOISE_HANDSHAKE_BYTES_MAX} bytes",
        f"at most {limits.NOISE_PLAINTEXT_BYTES_MAX} bytes.",
        f"| {limits.YAMUX_WINDOW_BYTES} bytes |",
        f"| {limits.YAMUX_FRAME_BYTES_MAX} bytes |",
        f"at most {limits.YAMUX_EARLY_STREAMS_MAX} streams with data",
        f"| {limits.YAMUX_OWN_STREAMS_MAX}; {limits.YAMUX_UNACKED_STREAMS_MAX}: `open` waits",
        f"at most {limits.IDENTIFY_MESSAGES_MAX} messages of {limits.IDENTIFY_MESSAGE_BYTES_MAX}",
        f"{limits.IDENTIFY_SENT_BYTES_MAX} bytes. Private",
        f"{limits.PING_BYTES} bytes echoed",
        f"{limits.ADDR_BYTES_MAX} bytes an address, {limits.ADDRS_MAX} addresses of a peer",
    ],
)
def test_fixed_limits_are_those_of_the_specification(said: str) -> None:
    assert said in SPEC.replace("\n", " ").replace("  ", " ")


def test_the_defaults_are_those_of_the_specification() -> None:
    config = P2pConfig.wan()
    rows = [
        f"| {config.pending_max}; {config.pending_per_ip_max}; {config.pending_per_prefix_max} |",
        f"| {config.accepts_per_s:g}/s, burst {config.accepts_burst} |",
        f"| {config.inbound_per_ip_max}; {config.inbound_per_prefix_max} |",
        f"| {config.connections_max}; {config.connections_for_members} |",
        f"| {config.ping_idle_s:g} s; {config.ping_busy_s:g} s |",
        f"| {config.dead_idle_s:g} s; {config.dead_busy_s:g} s |",
        f"| {config.streams_inbound_max}, more are reset |",
        f"{config.violations_max} violations in {config.violation_window_s / 60:g} min",
        f"refused for {config.ban_min_s:g} s, doubling to {config.ban_max_s / 3600:g} h",
        f"| {config.dial_each_s:g} s; {config.dial_all_s:g} s;",
        f"{config.dial_stagger_s * 1000:g} ms; {config.dial_addrs_max} |",
    ]
    assert [row for row in rows if row not in SPEC] == []


def test_the_drawn_table_of_states_is_the_table_in_the_code() -> None:
    for state in StreamState:
        cells = [
            following.name if (following := STREAM_TRANSITIONS.get((state, what))) else "-"
            for what in StreamInput
        ]
        assert f"| {state.name} | {' | '.join(cells)} |" in SPEC


def test_the_presets_differ_where_they_say() -> None:
    assert P2pConfig.lan().dead_idle_s == 10
    test = P2pConfig.test()
    assert test.private_is_public
    assert test.inbound_per_ip_max is None
    assert not test.draw_port


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pending_max", -1),
        ("connections_for_members", 513),
        ("ping_idle_s", 41.0),
        ("ban_min_s", 4000.0),
        ("stream_window_bytes_max", 1000),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        P2pConfig(**{field: value})  # type: ignore[arg-type]
