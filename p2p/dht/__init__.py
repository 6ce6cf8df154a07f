"""Kademlia discovery (later; the door is Node.find, see docs/decisions)."""
