"""The durable, searchable, trust-scored memory of one machine. Imports nothing of ours."""
