"""L2: the vision Transformer and the networks that are built on it."""
