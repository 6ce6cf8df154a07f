"""What memories are to each other: the same, in contradiction, derived."""
