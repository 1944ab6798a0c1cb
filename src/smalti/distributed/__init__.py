"""Distributed runs: collectives, heartbeats, signals."""
