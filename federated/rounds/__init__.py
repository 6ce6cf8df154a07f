"""Federated aggregation (later)."""
