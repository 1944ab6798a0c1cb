"""Backbones of others under our names: pure functions of weights that were read already."""
