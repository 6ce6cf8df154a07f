"""Text and words: cleaned, cut into chunks, parsed, indexed."""
