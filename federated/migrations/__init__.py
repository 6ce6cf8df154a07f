"""Numbered steps of the schema of jobs.db."""
