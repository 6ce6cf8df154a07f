"""The process: configuration, local RPC, MCP, command line, and the wiring of the others."""

__version__ = "0.1.0"
