"""Simulations of jobs over the product's own pure modules, for benchmarks and tests alike."""
