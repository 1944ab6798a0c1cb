"""L4: from image datasets to batches."""
