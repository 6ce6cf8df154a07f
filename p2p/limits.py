"""Numbers fixed by the wire: both sides must agree on them, so no configuration changes them.

What a node may tune for itself is in `p2p.config`. docs/specs/wire.md lists the same numbers and a
test compares the two.
"""

from __future__ import annotations

from typing import Final

# --- multistream-select (libp2p specs connections/README.md; docs/specs/wire.md s.3) ---
MULTISTREAM_LINE_BYTES_MAX: Final = 1024
"""A line with its newline, without its length prefix. go and js use the same bound."""
MULTISTREAM_PROPOSALS_MAX: Final = 8
"""Proposals answered before the stream is reset: an honest dialler needs one or two."""

# --- Noise (libp2p specs noise/README.md) ---
NOISE_MESSAGE_BYTES_MAX: Final = 65_535
"""Largest Noise message: its length prefix is a u16."""
NOISE_PLAINTEXT_BYTES_MAX: Final = NOISE_MESSAGE_BYTES_MAX - 16
"""What a message carries besides the 16-byte tag."""
NOISE_HANDSHAKE_BYTES_MAX: Final = 4096
"""Largest handshake message we read; real ones have about 200 bytes."""

# --- Yamux (hashicorp/yamux spec.md; libp2p specs yamux/README.md) ---
YAMUX_HEADER_BYTES: Final = 12
YAMUX_WINDOW_BYTES: Final = 262_144
"""Every stream starts with this window in both directions; it cannot be refused."""
YAMUX_FRAME_BYTES_MAX: Final = NOISE_PLAINTEXT_BYTES_MAX - YAMUX_HEADER_BYTES
"""Payload that we put into one frame, so that a frame and its header fill one Noise message."""
YAMUX_EARLY_STREAMS_MAX: Final = 8
"""Streams opened before the muxer is confirmed: js ends a connection with over 10."""
YAMUX_OWN_STREAMS_MAX: Final = 1000
"""Own live streams on a connection: js's limit."""
YAMUX_UNACKED_STREAMS_MAX: Final = 256
"""Own streams the other side has not acknowledged: the specification's backlog."""

# --- identify, envelope (libp2p specs identify/README.md, RFC 0002) ---
IDENTIFY_MESSAGE_BYTES_MAX: Final = 8192
IDENTIFY_MESSAGES_MAX: Final = 10
IDENTIFY_SENT_BYTES_MAX: Final = 4096
PING_BYTES: Final = 32

# --- addresses (docs/specs/wire.md s.2) ---
ADDR_BYTES_MAX: Final = 256
ADDRS_MAX: Final = 32
"""Addresses kept of one peer."""

# --- peer RPC (docs/specs/rpc.md) ---
RPC_BODY_BYTES_MAX: Final = 1 << 20
RPC_FRAME_BYTES_MAX: Final = RPC_BODY_BYTES_MAX + 1024
RPC_METHOD_CHARACTERS_MAX: Final = 64
RPC_MESSAGE_CHARACTERS_MAX: Final = 512
RPC_WINDOW_BYTES: Final = 262_144
"""Item bytes each side of a call may send at first: the window of a fresh Yamux stream, so that
neither layer waits for the other."""
RPC_CREDIT_BYTES_MAX: Final = 1 << 20
"""Most item bytes a side may be granted ahead of what its peer took."""
