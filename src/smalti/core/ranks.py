"""Rank and world size, from the environment variables that torchrun sets. A single process is rank 0 of 1."""

import os


def world_size() -> int:
    """The number of processes of this run."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process; rank 0 writes the run folder and prints."""
    return _number("RANK", 0) if world_size() > 1 else 0


def is_rank0() -> bool:
    """Whether this process is rank 0."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_world_size() -> int:
    """The number of processes on this machine, which share its cores and memory."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def restarts() -> int:
    """How often torchrun has restarted this group of processes."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def rank_name(number: int) -> str:
    """A rank as messages name it: `rank 1 of 4`."""
    return f"rank {number} of {world_size()}"


def _number(name: str, default: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdigit() else default
