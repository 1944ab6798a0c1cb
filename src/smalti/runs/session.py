"""What the training verbs have in common: a folder, a log, and where to compute."""

import shlex
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import kind_name
from smalti.core.contracts import Batch, Batches
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.sources.resident import Resident
from smalti.data.sources.stored import Stored
from smalti.runs.folder import RunFolder, create, reopen
from smalti.runs.kept import Kept
from smalti.training.capture import write_capture
from smalti.training.checkpoint import BackgroundWriter
from smalti.training.loop import Plan, Trainer, fit
from smalti.training.nonfinite import NotFiniteError
from smalti.training.profiling import Profiled

_RUN = ("config.json", "data.json", "bad_files.jsonl")
"""What a bundle has of the run."""


class TrainingConfig(Protocol):
    """The fields that every training verb's configuration has."""

    @property
    def out(self) -> str: ...
    @property
    def device(self) -> Device: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def profile(self) -> int: ...


@dataclass(frozen=True)
class Session:
    """Where a run lives and computes."""

    folder: RunFolder
    log: Log
    compute: Compute
    resumed: bool
    verb: str

    @staticmethod
    def open(config: TrainingConfig, *, resume: bool, compute: Compute | None) -> "Session":
        """Create the run folder, or take up the one that is there."""
        folder = reopen(config.out, config) if resume else create(config.out, config)
        chosen = choose_compute(config.device, config.precision) if compute is None else compute
        log = Log(folder.metrics)
        log.say(f"{folder.path}: {chosen.describe()}")
        return Session(folder, log, chosen, resume, kind_name(type(config)))

    def same_images(self, source: Resident | Stored) -> None:
        """Note what the run learns from.

        Raises:
            DataError: it goes on, and the images are not those it began with.
        """
        found = {"images": len(source), "fingerprint": source.fingerprint()}
        before = self.folder.read_data()
        if before is not None and before != found:
            there, here = before["images"], len(source)
            raise DataError(
                f"the images have changed since the run in {self.folder.path} began",
                cause=f"there were {there} of them, now {here}" if there != here else "files differ in name or length",
                fix="bring them back, or begin a new run",
            )
        if before is None:
            self.folder.write_data(found)

    def train(self, title: str, trainer: Trainer, batches: Batches, plan: Plan, profile: int = 0) -> None:
        """Run the loop, saving into the folder, from where the run was left; `profile` steps are recorded."""
        if profile:
            batches = Profiled(batches, profile, self.folder.path, self.log)
        if self.resumed:
            trainer.restore(self.folder.path)
            self.folder.forget_metrics_after(trainer.step)
            self.log.say(f"going on from step {trainer.step}")
        path = self.folder.path
        with Kept(self.folder, self.log) as kept, BackgroundWriter(before=kept.see_to_it) as writer:
            fit(
                trainer,
                batches,
                plan,
                self.log,
                title=title,
                compute=self.compute,
                save=lambda t: t.save(path, writer.write),
                capture=self.capture,
                go_on=f"smalti {self.verb} --resume {shlex.quote(str(path))}",
            )

    def capture(self, trainer: Trainer, batch: Batch, failure: NotFiniteError) -> Path:
        """Keep a step that failed in the run folder, with all that `smalti replay` needs."""
        path, data = self.folder.path, self.folder.read_data()
        more = [path / name for name in _RUN if (path / name).exists()]
        num_images = data["images"] if data else len(batch.index)
        return write_capture(path, trainer.checkpoint(), batch, failure.numbers, self.compute, num_images, more)

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write result.json."""
        self.folder.write_result(result)
        return result


def seconds_per_step(
    trainer: Trainer,
    batches: Batches,
    compute: Compute,
    steps: int = 12,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The usual time of a training step on this machine, in seconds. Trainer and batches are used up by it.

    The first steps (compilation, first touches of memory) do not count; of the others the median does.

    Args:
        clock: `time.process_time` counts what the processor did for this process alone.
    """
    warm = 3
    times = []
    trainer.objective.train()
    with closing(batches):
        for step in range(warm + steps):
            began = clock()
            trainer.train_step(batches(step).to(compute.device), compute)
            times.append(clock() - began)
    return sorted(times[warm:])[steps // 2]
