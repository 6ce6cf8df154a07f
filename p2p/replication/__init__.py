"""Signed records in per-author chains, groups, and the exchange that keeps replicas equal."""
