"""Tar shards, read where they lie by an index of offsets."""
