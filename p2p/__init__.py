"""The mesh: identity, wire, connections, peer RPC and replication. Imports nothing of ours."""
