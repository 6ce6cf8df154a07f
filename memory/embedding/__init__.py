"""Vectors of texts: computed in the background, kept, searched."""
