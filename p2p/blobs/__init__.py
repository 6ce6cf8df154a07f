"""Content-addressed blobs: kept on disk, fetched from many peers at once, verified by the chunk."""
