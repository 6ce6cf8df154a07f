"""In from files and out to files: imports, exports, backup copies."""
