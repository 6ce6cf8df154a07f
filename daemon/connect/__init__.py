"""Registration of MCP clients."""
