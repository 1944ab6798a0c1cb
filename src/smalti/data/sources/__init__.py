"""Images as files, and in memory."""
