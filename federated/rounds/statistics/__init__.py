"""Answers about data that stays where it is."""
