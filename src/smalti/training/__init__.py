"""L5: the one training loop, the objectives it minimises, optimiser and checkpoints."""
