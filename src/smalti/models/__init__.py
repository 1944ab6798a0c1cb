"""L2: the vision Transformer and what sits on it."""
