"""RPC methods, a module per namespace."""
