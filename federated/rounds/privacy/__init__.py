"""Masks, secret sharing and local noise."""
