"""Numbered schema migrations of covey.db, one transaction each."""
