"""Weights in the files of others: read as data, so that nothing in them is run, and put under our names."""
