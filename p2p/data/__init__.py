"""Data files the package reads: the BIP-39 English word list."""
