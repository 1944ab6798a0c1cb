"""Changes of the program for a run that is forked: places where it kills itself, and guarantees taken away."""

from collections.abc import Callable

CHANGES: dict[str, Callable[[], None]] = {}
