"""Reachability, port mapping, relays and hole punching (later; the door is net.seam.Transport)."""
