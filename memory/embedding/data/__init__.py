"""Data files the package reads: BERT's uncased vocabulary."""
