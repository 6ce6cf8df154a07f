"""Map, shuffle and reduce over peers (later)."""
