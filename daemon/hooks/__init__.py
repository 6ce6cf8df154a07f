"""Recall unasked: what an agent's hooks get, and the command that asks for it."""
