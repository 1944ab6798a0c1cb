"""Visual tokens: made live, kept in a cache, read again."""
