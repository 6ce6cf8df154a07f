"""Federated aggregation: rounds between peers, without a server."""
