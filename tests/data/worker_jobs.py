"""Jobs for data workers: pixels that depend on image and key, and images that bring trouble."""

import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from smalti.core.errors import DataError
from smalti.core.rng import fold
from smalti.data.workers.jobs import Task


@dataclass(frozen=True)
class Noise:
    """`trouble` says what happens at an image: "bad", "memory", "bug", "exit", "fifo", "hang", "print", or a signal.

    With "once " before it, it happens the first time only; `folder` remembers that, and holds the named pipe. With
    "slow " before it, it happens after some time.
    """

    length: int = 50
    trouble: dict[int, str] = field(default_factory=dict)
    folder: Path | None = None
    seconds: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = ((3, 4, 5), (7,))

    def __len__(self) -> int:
        return self.length

    def name(self, position: int) -> str:
        return f"image-{position}.jpg"

    def __call__(self, position: int, key: int, out: Sequence[np.ndarray]) -> None:
        time.sleep(self.seconds)
        out[0][:] = 255  # what an image that fails leaves behind must not be seen
        trouble = self.trouble.get(position, "")
        if trouble.startswith("once "):
            assert self.folder is not None
            mark = self.folder / str(position)
            trouble = "" if mark.exists() else trouble.removeprefix("once ")
            mark.touch()
        if trouble.startswith("slow "):
            time.sleep(0.2)
        self._bring(trouble.removeprefix("slow "))
        for number, array in enumerate(out):
            draws = fold(position, key, number, np.arange(array.size))
            array[:] = (draws % 251).astype(np.uint8).reshape(array.shape)

    def _bring(self, trouble: str) -> None:
        if trouble == "bad":
            raise DataError("cannot read it", cause="it is broken")
        if trouble == "memory":
            np.empty(1 << 60, np.uint8)
        if trouble == "bug":
            raise ZeroDivisionError("a bug")
        if trouble == "exit":
            os._exit(3)
        if trouble == "fifo":
            assert self.folder is not None
            (self.folder / "pipe").read_bytes()
        if trouble == "print":
            print("printed by a job")
            os.write(1, b"written by a library\n")
        if trouble.startswith("SIG"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), signal.Signals[trouble])
        if trouble == "hang":
            while True:
                time.sleep(0.01)


def task(*positions: int, seed: int = 0) -> Task:
    """These images, with keys that depend on `seed`."""
    index = np.array(positions, np.int64)
    return Task(index, fold(seed, np.arange(len(index)), index))
