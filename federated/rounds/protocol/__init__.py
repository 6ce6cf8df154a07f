"""The round machine, without a clock or a socket."""
