"""L4: from a pile of images to batches."""
