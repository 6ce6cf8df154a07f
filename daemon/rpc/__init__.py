"""The local JSON-RPC 2.0 socket."""
