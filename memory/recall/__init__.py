"""Reading: from a question, a filter or an id to hits."""
