"""Which of how many processes this one is, as torchrun tells each of them in its environment. One alone is rank 0."""

import os


def world_size() -> int:
    """Processes that train together."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process among them; 0 writes the run folder and speaks to people."""
    return _number("RANK", 0) if world_size() > 1 else 0


def is_rank0() -> bool:
    """Whether this process is rank 0."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its machine: which GPU is its own."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_world_size() -> int:
    """Processes on this machine, which share its cores and its memory."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def restarts() -> int:
    """How often torchrun has started this group of processes again."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def named(number: int) -> str:
    """A rank as people read it."""
    return f"rank {number} of {world_size()}"


def _number(name: str, default: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdigit() else default
