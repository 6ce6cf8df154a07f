"""The dashboard (later)."""
