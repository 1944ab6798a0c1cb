"""Processes that train together: collectives, signs of life, signals."""
