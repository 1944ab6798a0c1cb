"""Models in the formats of other programs, and as bundles of our own."""
