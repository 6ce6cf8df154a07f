"""Helpers of the tests: deterministic runs, cancellation sweeps, crash images, whole nodes."""
