"""Weights in the files of others, read as data: nothing in them is run."""
