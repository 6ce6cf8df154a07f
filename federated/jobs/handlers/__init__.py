"""What computes rows: the built-ins, files, memory, an operator's programs, models, expressions."""
