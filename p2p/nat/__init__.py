"""Reachability, port mapping, relays, hole punching, and the local network."""
