"""Shared memory between trainers and the daemon."""
