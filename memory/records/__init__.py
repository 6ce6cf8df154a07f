"""Signed records: written, stored, projected into rows, taken out."""
