"""The seam (Fabric, Stream, Transport), its implementations and the connection driver."""
