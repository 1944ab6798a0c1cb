"""L1: the paper's equations as pure functions. Each is tested against a naive implementation in tests/oracles.py."""
