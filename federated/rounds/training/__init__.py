"""What a trainer does between rounds."""
