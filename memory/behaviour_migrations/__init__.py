"""Schema of behaviour.db, by number; `memory.schema` applies it."""
