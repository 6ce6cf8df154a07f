"""Parts of `python -m benchmarks rounds`."""
