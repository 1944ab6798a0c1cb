"""What the training verbs have in common: a folder, a log, and where to compute."""

import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch

from smalti import __version__
from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import kind_name, leaves, require
from smalti.core.contracts import Batch, Batches, Evaluation
from smalti.core.errors import CheckpointError, DataError
from smalti.core.log import Log
from smalti.core.ranks import is_rank0, restarts, world_size
from smalti.data.datasets.dataset import ImageDataset
from smalti.distributed.collectives import all_gather, from_rank0, name_lost_rank, require_same
from smalti.runs.folder import RunFolder, create, read_config, reopen
from smalti.runs.kept import Kept
from smalti.runs.resume import require_exact, require_same_settings
from smalti.training.checkpoint import BackgroundWriter, Checkpoint, has_checkpoint, read_checkpoint_on_rank0
from smalti.training.loop import Remark, fit
from smalti.training.nonfinite import NotFiniteError
from smalti.training.nonfinite_dump import write_dump
from smalti.training.profiling import Profiled
from smalti.training.run_environment import RunEnvironment
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan

_RUN = ("config.json", "data.json", "bad_files.jsonl")
"""What a bundle has of the run."""


T = TypeVar("T")


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
    """Where a run lives and computes.

    Attributes:
        resumed: it goes on from a checkpoint. Where there is none yet, it begins anew.
        allow_inexact: it may go on otherwise than it began.
    """

    folder: RunFolder
    log: Log
    compute: Compute
    resumed: bool
    verb: str
    allow_inexact: bool = False

    @staticmethod
    def open(
        config: TrainingConfig, *, resume: bool, compute: Compute | None, allow_inexact: bool = False
    ) -> "Session":
        """Create the run folder, or take up the one that is there.

        Raises:
            UsageError: its settings were others, and it may not go on otherwise.
            DistributedError: they are others on another rank.
        """
        require_same("configuration", {field.name: field.value for field in leaves(config)} | _program())
        resumed = resume and from_rank0(lambda: has_checkpoint(Path(config.out).expanduser()))
        if resumed:
            require_same_settings(config.out, read_config(config.out, type(config)), config, allow_inexact)
        folder = reopen(config.out, config) if resume else create(config.out, config)
        chosen = _same_format(choose_compute(config.device, config.precision)) if compute is None else compute
        log = Log(folder.metrics)
        log.say(f"{folder.path}: {chosen.describe()}")
        if resume and not resumed:
            log.say("no checkpoint yet: starting from step 0")
        return Session(folder, log, chosen, resumed, kind_name(type(config)), allow_inexact)

    def settled(self, config: T) -> T:
        """The same, with device and number format as they were decided: a run that goes on must not decide anew."""
        chosen: Any = replace(cast(Any, config), device=self.compute.device_kind, precision=self.compute.precision)
        return chosen

    def same_images(self, source: ImageDataset) -> None:
        """Note what the run learns from.

        Raises:
            DataError: it goes on, and the images are not those it began with.
        """
        found = {"images": len(source), "fingerprint": source.fingerprint()}
        require_same("data set", found | {"memory": "stream" if source.pixels is None else "resident"})
        before = self.folder.read_data() if is_rank0() else found
        if before is not None and before != found:
            there, here = before["images"], len(source)
            raise DataError(
                f"the images have changed since the run in {self.folder.path} began",
                cause=f"there were {there} of them, now {here}" if there != here else "files differ in name or length",
                fix="bring them back, or begin a new run",
            )
        if before is None:
            self.folder.write_data(found)

    def train(
        self,
        title: str,
        trainer: Trainer,
        batches: Batches,
        plan: Plan,
        profile: int = 0,
        look: Callable[[Trainer], None] | None = None,
        evaluation: Evaluation | None = None,
        remark: Remark | None = None,
    ) -> None:
        """Run the loop, saving into the folder, from where the run was left; `profile` steps are recorded.

        Args:
            look: called before every save that `plan` asks for; it must leave the trainer as it is.
        """
        if profile and is_rank0():
            batches = Profiled(batches, profile, self.folder.path, self.log)
        if self.resumed:
            self._restore(trainer)
            require(
                trainer.step <= plan.steps,
                f"steps is {plan.steps}, and the run in {self.folder.path} has done {trainer.step}",
                f"use --plan.steps {trainer.step} or more",
            )
            again = f" after restart {restarts()} by torchrun" if restarts() else ""
            self.log.say(f"going on from step {trainer.step}{again}")
        self.folder.forget_metrics_after(trainer.step)
        path = self.folder.path
        many = f", on {world_size()} processes" if world_size() > 1 else ""
        with Kept(self.folder, self.log) as kept, BackgroundWriter(before=kept.see_to_it) as writer, name_lost_rank():

            def save(at: Trainer) -> None:
                planned = at.step == plan.scheduled(at.step) or at.step == plan.steps
                if look is not None and planned:  # and not where a signal asks: an interrupted run looks as often
                    look(at)
                at.save(path, partial(writer.write, keep=plan.scheduled(at.step) if plan.rollback else None))

            fit(
                trainer,
                batches,
                plan,
                self.log,
                title=title,
                compute=self.compute,
                save=save,
                capture=self.capture,
                evaluation=evaluation,
                remark=remark,
                go_back=lambda at: self._go_back(at, plan, writer),
                go_on=f"smalti {self.verb} --resume {shlex.quote(str(path))}{many}",
            )

    def _go_back(self, trainer: Trainer, plan: Plan, writer: BackgroundWriter) -> str:
        """Roll back to the newest checkpoint that was due before this step, whatever signals have asked for since."""
        writer.wait()
        try:
            checkpoint = read_checkpoint_on_rank0(self.folder.path, until=plan.scheduled(trainer.step - 1))
        except CheckpointError as error:
            return f"no checkpoint to go back to: {error.cause}"
        trainer.roll_back(checkpoint, str(self.folder.path))
        return (
            f"rolled back to step {checkpoint.step}: the images since are left out, step {trainer.step + 1} is next;"
            f" {trainer.rollbacks} of at most {plan.rollback} times"
        )

    def _restore(self, trainer: Trainer) -> None:
        """Take up the newest whole checkpoint.

        Raises:
            UsageError: it was written under other conditions, and the run may not go on otherwise.
        """
        run = str(self.folder.path)
        checkpoint, now = read_checkpoint_on_rank0(self.folder.path), RunEnvironment.now()
        if checkpoint.conditions is None:
            self.log.say("note: the checkpoint does not say on how many threads and processes it was computed")
        else:
            differing = checkpoint.conditions.differences(now, on_cpu=self.compute.device.type == "cpu")
            require_exact(run, differing, self.allow_inexact)
        trainer.load_state(checkpoint, run)

    def capture(self, trainer: Trainer, batch: Batch, failure: NotFiniteError) -> Path:
        """Keep a step that failed in the run folder, with all that `smalti replay` needs: the images of all ranks."""
        before = trainer.checkpoint()
        batch = replace(batch, index=all_gather(batch.index), key=all_gather(batch.key))
        return Path(from_rank0(lambda: str(self._capture(before, batch, failure))))

    def _capture(self, before: Checkpoint, batch: Batch, failure: NotFiniteError) -> Path:
        path, data = self.folder.path, self.folder.read_data()
        more = [path / name for name in _RUN if (path / name).exists()]
        num_images = data["images"] if data else len(batch.index)
        return write_dump(path, before, batch, failure.numbers, self.compute, num_images, more)

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write result.json. What came out as no number is said, and null there: the weights are finite."""
        unknown = list(_not_finite(result))
        if unknown:
            self.log.say(f"warning: not finite on held-out images: {', '.join(unknown)}")
        finite: dict[str, Any] = _with_null(result)
        self.folder.write_result(finite)
        return finite


def _not_finite(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _not_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield prefix + name


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_null(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _program() -> dict[str, str | int]:
    """What else must be the same on all ranks, for sums to be made in the same order."""
    return {"smalti": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}


def _same_format(chosen: Compute) -> Compute:
    """The number format that rank 0 has found to be the fastest."""
    narrow = from_rank0(lambda: chosen.dtype == torch.bfloat16)
    return replace(chosen, dtype=torch.bfloat16 if narrow else torch.float32)


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
