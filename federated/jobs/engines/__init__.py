"""Where tasks run besides peers' own workers: this machine, and clusters the operator named."""
