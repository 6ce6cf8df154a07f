"""Programs behind the Makefile; no part of what is installed."""
