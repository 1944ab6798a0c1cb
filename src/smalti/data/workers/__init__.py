"""Worker processes that render batches ahead of time; a worker that dies is replaced."""
