"""Schema of behaviour.db, by number; `memory.storage.schema` applies it."""
