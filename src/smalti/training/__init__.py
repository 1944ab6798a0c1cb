"""L5: the training loop, objectives, optimiser and checkpoints."""
