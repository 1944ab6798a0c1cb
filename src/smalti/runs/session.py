"""What the training commands share: run folder, log, compute settings, and the training loop with its hooks."""

import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from smalti import __version__
from smalti.core.compute import Compute, RunEnvironment, choose_compute
from smalti.core.config import kind_name, leaves, require, require_storable
from smalti.core.contracts import Batches
from smalti.core.errors import EXIT_OUT_OF_MEMORY, DataError, UnmeasuredError, is_out_of_memory
from smalti.core.files import require_space
from smalti.core.log import Log
from smalti.core.notebook import Result
from smalti.core.ranks import is_rank0, restarts, world_size
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.load import AnyImages
from smalti.distributed.collectives import broadcast_precision, from_rank0, require_same
from smalti.distributed.process_group import name_lost_rank, process_group
from smalti.runs.folder import (
    TOKENIZER,
    RunFolder,
    create,
    is_run,
    public_settings,
    read_config,
    remove_unstarted,
    require_exact,
    require_same_settings,
    writing,
)
from smalti.runs.hooks import NO_BASELINES, Baselines, Pictures, TrainingHooks
from smalti.runs.pretraining_checks import OnlineProbe
from smalti.runs.training_run import LEARNING_RATE, TrainingRun
from smalti.training.checkpoint import FOLDER as CHECKPOINTS
from smalti.training.checkpoint import BackgroundWriter, has_checkpoint, newest_step, read_checkpoint_on_rank0
from smalti.training.loop import fit
from smalti.training.profiling import Profiled
from smalti.training.trackers import open_tracker, require_tracker
from smalti.training.tracking import Tracking
from smalti.training.trainer import Trainer

T = TypeVar("T", bound=TrainingRun)


@contextmanager
def removed_if_unstarted(out: str) -> Iterator[None]:
    """Where a new run fails before its first step, its folder does not stand in the way of the next try."""
    existed = is_run(out)
    try:
        yield
    except BaseException:
        if not existed:
            remove_unstarted(out)
        raise


@dataclass(frozen=True)
class Session:
    """The run folder of a training run, and where it computes.

    Attributes:
        resumed: the run resumes from a checkpoint. If there is none yet, it starts from the beginning.
        allow_inexact: the run may resume under conditions that differ from those at its start.
    """

    folder: RunFolder
    log: Log
    compute: Compute
    resumed: bool
    verb: str
    allow_inexact: bool = False

    @staticmethod
    @contextmanager
    def open(
        config: TrainingRun,
        kind: type[TrainingRun],
        *,
        resume: bool,
        compute: Compute | None,
        allow_inexact: bool = False,
    ) -> Iterator["Session"]:
        """Connect to the other ranks, then create or reopen the run folder and lock it against other writers.

        Where a new run fails before its first step, its folder does not stand in the way of the next try.

        Args:
            kind: the class of the configuration, which names the run when it is read back.

        Raises:
            UsageError: a run folder cannot store a setting; or settings have changed since the run began, and that is
                not allowed.
            LockError: another process is writing to the folder.
            DistributedError: the settings differ on another rank.
        """
        name = type(config).__name__
        require(type(config) is kind, f"a {name}, and a run folder cannot name it", f"give a {kind.__name__}")
        require_storable(config)
        require_tracker(config.log)
        with removed_if_unstarted(config.out), process_group(config.ranks, config.device), writing(config.out):
            yield Session._open(config, resume, compute, allow_inexact)

    @staticmethod
    def _open(config: TrainingRun, resume: bool, compute: Compute | None, allow_inexact: bool) -> "Session":
        # with the same program sums are computed in the same order
        program = {"smalti": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        require_same("configuration", {field.name: field.value for field in leaves(config)} | program)
        resumed = resume and from_rank0(lambda: has_checkpoint(Path(config.out).expanduser()))
        if resumed:
            before = read_config(config.out, type(config))
            step = from_rank0(lambda: newest_step(Path(config.out).expanduser()) or 0)
            what = effects(before, config, step)
            require_same_settings(config.out, before, config, allow_inexact, what)
        if resume:
            folder = RunFolder(Path(config.out).expanduser())
            folder.write_config(config)
        else:
            folder = create(config.out, config)
        chosen = broadcast_precision(choose_compute(config.device, config.precision)) if compute is None else compute
        log = Log(folder.metrics)
        log.say(f"{folder.path}: {chosen.describe()}")
        if resume and not resumed:
            log.say("no checkpoint yet: starting from step 0")
        return Session(folder, log, chosen, resumed, kind_name(type(config)), allow_inexact)

    def resolved(self, config: T, images: AnyImages) -> T:
        """The configuration with device, number format and storage of the images as decided: a resumed run must
        not decide them again."""
        compute, data = self.compute, config.data.resolved(images)
        return replace(config, data=data, device=compute.device_kind, precision=compute.precision)

    def begin(self, config: TrainingRun, classes: tuple[str, ...] = ()) -> None:
        """For a new run, write the resolved configuration and the class names of a classifier's outputs."""
        if not self.resumed:
            self.folder.write_config(config)
            if classes:
                self.folder.write_classes(classes)

    def require_same_images(self, source: ImageDataset, network: str | None = None, named: str = "tokenizer") -> None:
        """Record which images the run is trained on, and the digest of the network whose outputs it predicts.

        Args:
            network: the digest of the tokenizer, or of a tokenizer's teacher; None: there is none.

        Raises:
            DataError: the run is resumed, and the images are not those it started with.
            UsageError: it is resumed with another network, and that is not allowed.
        """
        found = {"images": len(source), "fingerprint": source.fingerprint()}
        require_same("data set", found | {"memory": "stream" if source.pixels is None else "resident"})
        whole = found | ({} if network is None else {TOKENIZER: network})
        before = self.folder.read_data() if is_rank0() else whole
        if before is None:
            self.folder.write_data(whole)
            return
        if {name: before.get(name) for name in found} != found:
            there, here = before["images"], len(source)
            raise DataError(
                f"the images have changed since the run in {self.folder.path} began",
                cause=f"there were {there} of them, now {here}" if there != here else "files differ in name or length",
                fix=f"bring them back, or begin a new run{_starting_from(self.verb, self.folder.path)}",
            )
        if before.get(TOKENIZER, network) != network:
            require_exact(str(self.folder.path), [f"the {named} has other weights than it had"], self.allow_inexact)

    def train(
        self,
        title: str,
        trainer: Trainer,
        batches: Batches,
        config: TrainingRun,
        look: Callable[[Trainer], None] | None = None,
        evaluation: OnlineProbe | None = None,
        baselines: Baselines = NO_BASELINES,
        pictures: Pictures | None = None,
    ) -> None:
        """Run the training loop from where the run stopped, and save to the run folder.

        Args:
            config: of the run: its plan, how many steps are profiled, and what it is logged to.
            look, evaluation, baselines, pictures: as of `TrainingHooks`.
        """
        plan = config.plan
        if config.profile and is_rank0():
            batches = Profiled(batches, config.profile, self.folder.path, self.log)
        if self.resumed:
            self._restore(trainer)
            require(
                trainer.step <= plan.steps,
                f"steps is {plan.steps}, and the run in {self.folder.path} has done {trainer.step}",
                f"use --plan.steps {trainer.step} or more",
            )
            again = f" after restart {restarts()} by torchrun" if restarts() else ""
            self.log.say(f"going on from step {trainer.step}{again}")
        self.folder.truncate_metrics(trainer.step)
        path = self.folder.path
        if is_rank0():
            require_space(path, trainer.checkpoint_bytes, "the first checkpoint")
        many = f", on {world_size()} processes" if world_size() > 1 else ""
        go_on = f"smalti {self.verb} --resume {shlex.quote(str(path))}{many}"
        with (
            BackgroundWriter(before=self.folder.require_ours) as writer,
            name_lost_rank(),
            self._tracking(config, trainer.step) as tracking,
        ):
            hooks = TrainingHooks(
                self.folder,
                self.compute,
                plan,
                writer,
                go_on,
                look=look,
                evaluation=evaluation,
                baselines=baselines,
                tracking=tracking,
                pictures=None if config.log == "none" or config.log_pictures == 0 else pictures,
                log_pictures=config.log_pictures,
            )
            fit(trainer, batches, plan, self.log, title=title, compute=self.compute, hooks=hooks)
        self.folder.require_ours()

    @contextmanager
    def _tracking(self, config: TrainingRun, done: int) -> Iterator[Tracking | None]:
        """The tracker that the run is logged to, on rank 0; None elsewhere, and where there is none."""
        if config.log == "none" or not is_rank0():
            yield None
            return
        path, history = self.folder.path, self.folder.read_metrics()
        opened = partial(open_tracker, config.log, path)
        with Tracking(config.log, opened, path, done, history, public_settings(config), self.log) as tracking:
            self.log.also = tracking.record
            try:
                yield tracking
            finally:
                self.log.also = None

    def _restore(self, trainer: Trainer) -> None:
        """Restore the newest complete checkpoint.

        Raises:
            UsageError: it was written under other conditions, and an inexact resume is not allowed.
        """
        run = str(self.folder.path)
        checkpoint, now = read_checkpoint_on_rank0(self.folder.path), RunEnvironment.now()
        if checkpoint.conditions is None:
            self.log.say("note: the checkpoint does not say on how many threads and processes it was computed")
        else:
            differing = checkpoint.conditions.differences(now, on_cpu=self.compute.device.type == "cpu")
            require_exact(run, differing, self.allow_inexact)
        trainer.load_state(checkpoint, run)

    def finish(self, measure: Callable[[], dict[str, Any]], weights: str = "") -> dict[str, Any]:
        """Measure what was trained, write result.json, and say where the weights are: here, or in the folder `weights`.

        Values that are not finite are reported and written as null: the weights are finite.

        Raises:
            UnmeasuredError: memory or data for the measurement are missing; the weights are kept.
        """
        try:
            result = measure()
        except Exception as error:
            path = shlex.quote(str(self.folder.path))
            what = f"{self.folder.path} is trained and saved, and only its measurement failed"
            fix = f"measure it with: smalti evaluate {path} DATA, or again with: smalti {self.verb} --resume {path}"
            if is_out_of_memory(error):
                raise UnmeasuredError(what, cause="out of memory", fix=fix, exit_code=EXIT_OUT_OF_MEMORY) from error
            if isinstance(error, DataError):
                raise UnmeasuredError(what, cause=str(error), fix=fix, exit_code=error.exit_code) from error
            self.log.say(f"{what}; {fix}")
            raise
        unknown = list(_not_finite(result))
        if unknown:
            self.log.say(f"warning: not finite on held-out images: {', '.join(unknown)}")
        finite: dict[str, Any] = with_null(result)
        self.folder.write_result(finite)
        place = self.folder.path / weights
        self.log.say(f"weights: {place / CHECKPOINTS / f'step-{newest_step(place) or 0:08d}' / 'model.safetensors'}")
        return Result(finite)


def effects(before: TrainingRun, now: TrainingRun, step: int) -> list[str]:
    """What changed settings do to a run that goes on after `step` steps, and how its learning rate stays as it was."""
    found = []
    planned, schedules = before.schedules(), now.schedules()
    for name in [name for name in schedules if name in planned]:
        last, was, value = planned[name](step), planned[name](step + 1), schedules[name](step + 1)
        if not math.isclose(value, was, rel_tol=0.01):
            found.append(f"{name} {last:.2g} at step {step}, {value:.2g} at step {step + 1}")
    if found and found[0].startswith(LEARNING_RATE):
        scale = now.optimiser.scaled_to(now.plan.batch_size).lr / now.optimiser.lr
        rate = planned[LEARNING_RATE](step + 1) / scale
        keep = f"--optimiser.schedule constant --optimiser.lr {rate:.3g} --allow-inexact goes on at the rate it had"
        anew = _starting_from(kind_name(type(now)), Path(now.out))
        found += [keep, *([f"a new run{anew} has a new warm-up"] if anew else [])]
    if before.optimiser.matrices != now.optimiser.matrices:
        found.append("averages of the gradients of matrices start anew")
    if before.plan.batch_size != now.plan.batch_size:
        found.append(f"images go on from {step * now.plan.batch_size}, as if all steps had been of the new batch size")
    return found


def _starting_from(verb: str, run: Path) -> str:
    """The flag with which a new run starts from the weights of another; empty for tokenizers."""
    flag = {"pretrain": "--init-from", "finetune": "--init"}.get(verb)
    return f" with {flag} {shlex.quote(str(run))}" if flag else ""


def _not_finite(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _not_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield prefix + name


def with_null(value: Any) -> Any:
    """JSON values with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: with_null(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def seconds_per_step(
    trainer: Trainer,
    batches: Batches,
    compute: Compute,
    steps: int = 12,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The median time of a training step on this machine, in seconds. Trainer and batches cannot be used afterwards.

    The first steps are excluded, because they include compilation and first accesses to memory.

    Args:
        clock: returns seconds; `time.process_time` counts only the processor time of this process.
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
