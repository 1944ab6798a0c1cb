"""The numbers of threads and processes, which change the order of sums and so the bits of a run."""

from dataclasses import dataclass

import torch

from smalti.core.ranks import world_size


@dataclass(frozen=True)
class RunEnvironment:
    """Numbers of threads and processes, saved in checkpoints; with others, the bits of a resumed run differ."""

    threads: int
    world_size: int

    @staticmethod
    def now() -> "RunEnvironment":
        """Those of this process; call it in the main thread, as torch's thread count in a new thread may differ."""
        return RunEnvironment(torch.get_num_threads(), world_size())

    def differences(self, now: "RunEnvironment", *, on_cpu: bool) -> list[str]:
        """Messages that say what has changed; threads are compared only where computation is on a CPU."""
        told = []
        if on_cpu and self.threads != now.threads:
            told.append(f"{_counted(self.threads, 'thread')} then, {now.threads} now (OMP_NUM_THREADS)")
        if self.world_size != now.world_size:
            told.append(f"{_counted(self.world_size, 'process', 'es')} then, {now.world_size} now")
        return told


def _counted(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
