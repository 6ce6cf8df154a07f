"""What is computed from arrays: kernels, rules, codecs, tensor files."""
