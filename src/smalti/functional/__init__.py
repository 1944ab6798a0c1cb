"""L1: the paper's equations as pure functions. Each has a naive oracle in tests/oracles.py."""
