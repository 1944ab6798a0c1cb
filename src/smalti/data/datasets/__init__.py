"""Datasets: one protocol, and one module for each storage format."""
