"""The MCP relay (standard library only) and the host of the official SDK."""
