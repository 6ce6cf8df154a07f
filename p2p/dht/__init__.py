"""The distributed hash table: finding peers and small signed values with no server of ours."""
