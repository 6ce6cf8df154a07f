"""The databases and side files of a node: opened, migrated, written in transactions."""
