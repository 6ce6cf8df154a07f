"""How far authors and memories are believed, and the status that follows."""
