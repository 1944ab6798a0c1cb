"""Processes that render batches ahead of time, and may die."""
