"""What the bits of a run depend on beside its configuration: on how many threads and processes sums are split."""

from dataclasses import dataclass

import torch

from smalti.core.ranks import world_size


@dataclass(frozen=True)
class RunEnvironment:
    """Recorded in every checkpoint; a run that goes on under others ends in other bits."""

    threads: int
    world_size: int

    @staticmethod
    def now() -> "RunEnvironment":
        """Those of this process. A thread that has just begun would count its own threads, not those of training."""
        return RunEnvironment(torch.get_num_threads(), world_size())

    def differences(self, now: "RunEnvironment", *, on_cpu: bool) -> list[str]:
        """What has changed since, for people; threads matter where sums are computed on them."""
        told = []
        if on_cpu and self.threads != now.threads:
            told.append(f"{_counted(self.threads, 'thread')} then, {now.threads} now (OMP_NUM_THREADS)")
        if self.world_size != now.world_size:
            told.append(f"{_counted(self.world_size, 'process', 'es')} then, {now.world_size} now")
        return told


def _counted(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
