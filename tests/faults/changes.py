"""Changes of the program for a run that is forked: places where it kills itself, and guarantees taken away.

Several are joined by `+`. They change classes for good, which is why they are for processes that end.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from threading import current_thread, main_thread
from typing import Any

import torch
from torch import Tensor

from smalti.core.contracts import Batch
from smalti.data.loader import Loader
from smalti.functional import gumbel_relaxation as relaxation
from smalti.runs import pretrain
from smalti.runs.folder import RunFolder
from smalti.runs.session import Session
from smalti.training import checkpoint
from smalti.training.checkpoint import BackgroundWriter, Checkpoint
from smalti.training.trainer import SpikeDetector, Trainer

SPIKES = (24, 31, 35)
"""Steps whose loss jumps."""


def install(owner: Any, name: str, change: Any) -> None:
    """Something of a class or a module is another for good."""
    setattr(owner, name, change)


def spikes() -> None:
    """Some steps compute a hundred times their loss, as a bad batch may make it."""
    whole = Trainer._gradients

    def gradients(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        output = whole(trainer, *arguments, **named)
        return output._replace(loss_sum=output.loss_sum * (100 if trainer.step + 1 in SPIKES else 1))

    install(Trainer, "_gradients", gradients)


def slow() -> None:
    """A step takes a tenth of a second at least."""
    whole = Trainer.train_step

    def train_step(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        time.sleep(0.1)
        return whole(trainer, *arguments, **named)

    install(Trainer, "train_step", train_step)


def hangs() -> None:
    """The fourth step takes ten minutes."""
    whole = Trainer.train_step

    def train_step(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        time.sleep(600 if trainer.step == 3 else 0)
        return whole(trainer, *arguments, **named)

    install(Trainer, "train_step", train_step)


def nohup() -> None:
    """As the program of that name."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_before(step: int) -> Callable[[], None]:
    """Killed when `step` steps are done and all that was due is saved."""

    def change() -> None:
        whole = Trainer.train_step

        def train_step(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
            if trainer.step == step:
                written()
                die()
            return whole(trainer, *arguments, **named)

        written = _noted_writer()
        install(Trainer, "train_step", train_step)

    return change


def _noted_writer() -> Callable[[], None]:
    """A function that waits for the checkpoint that is being written."""
    writers: list[BackgroundWriter] = []
    begin = BackgroundWriter.__init__

    def init(writer: BackgroundWriter, before: Callable[[], None] = lambda: None) -> None:
        begin(writer, before)
        writers.append(writer)

    install(BackgroundWriter, "__init__", init)
    return lambda: writers[-1].wait()


def dies_in_the_third_part() -> None:
    """A09: of a step whose gradient is summed over four, the sixth of the run."""
    whole = Batch.split

    def split(batch: Batch, parts: int) -> Any:
        for number, part in enumerate(whole(batch, parts)):
            steps.append(number)
            if len(steps) == 5 * 4 + 3:
                written()
                die()
            yield part

    steps: list[int] = []
    written = _noted_writer()
    install(Batch, "split", split)


def dies_after_an_epoch() -> None:
    """A08: its last step is done and not saved yet, and the checkpoint before is written."""

    def save(trainer: Trainer, *arguments: Any, **named: Any) -> None:
        if trainer.step == 6:
            written()
            die()
        whole(trainer, *arguments, **named)

    whole, written = Trainer.save, _noted_writer()
    install(Trainer, "save", save)


def dies_while_measuring() -> None:
    """A14: all is trained, and nothing is measured."""
    install(pretrain, "measure", lambda *_, **__: die())


def dies_while_the_result_is_written() -> None:
    """A14: it is written beside its place."""
    whole = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith("result.json"):
            die()
        whole(source, target)

    install(os, "replace", replace)


def after_taking_up(forget: Callable[[Trainer, Checkpoint], None]) -> Callable[[], None]:
    """Something is not taken up again."""

    def change() -> None:
        whole = Trainer.load_state

        def load_state(trainer: Trainer, found: Checkpoint, where: str) -> None:
            whole(trainer, found, where)
            forget(trainer, found)

        install(Trainer, "load_state", load_state)

    return change


def _averages(trainer: Trainer, _: Checkpoint) -> None:
    assert trainer.ema is not None
    trainer.ema.module.load_state_dict(trainer.objective.model.state_dict())


def _moments(trainer: Trainer, _: Checkpoint) -> None:
    trainer.optimizer.state.clear()


def _dying_codes(trainer: Trainer, _: Checkpoint) -> None:
    for buffer in trainer.objective.buffers(recurse=False):
        buffer.zero_()


def _codebook(trainer: Trainer, _: Checkpoint) -> None:
    model: Any = trainer.objective.model
    model.sums.mul_(1.01)


def _rollbacks(trainer: Trainer, _: Checkpoint) -> None:
    trainer.rollbacks = 0


def _losses(trainer: Trainer, _: Checkpoint) -> None:
    trainer.spikes = SpikeDetector()


def order_from_the_start() -> None:
    """The position in the data is that of the process, and not of the run."""
    whole, calls = Loader.__call__, list[int]()

    def batch(loader: Loader, step: int) -> Batch:
        calls.append(step)
        return whole(loader, len(calls) - 1)

    install(Loader, "__call__", batch)


def late_noise() -> None:
    """Noise from a generator that is seeded when a process begins, and no function of the keys."""
    generator = torch.Generator().manual_seed(0)

    def noise(key: Any, num: int, **_: Any) -> Any:
        return -torch.rand(len(key), num, generator=generator).clamp_min(1e-9).log().neg().log()

    install(relaxation, "gumbel_noise", noise)


def late_copies() -> None:
    """A checkpoint is written when the next one is due, from tensors that have moved on."""
    install(checkpoint, "_copied", dict)
    write, waiting = BackgroundWriter.write, list[Any]()

    def late(writer: BackgroundWriter, *arguments: Any, **options: Any) -> None:
        if waiting:
            write(writer, *waiting.pop()[0], **options)
        waiting.append((arguments,))

    install(BackgroundWriter, "write", late)


def metrics_stay() -> None:
    """Losses of steps that are repeated are there twice."""
    install(RunFolder, "truncate_metrics", lambda *_: None)


def begins_anew_whatever_happens() -> None:
    """A checkpoint that cannot be read is nothing to speak of."""
    whole = Session._restore

    def restore(session: Session, trainer: Trainer) -> None:
        with suppress(Exception):
            whole(session, trainer)

    install(Session, "_restore", restore)


def no_number_is_no_error() -> None:
    """A step that is not finite, at the fifth, changes the weights as any other does."""
    isfinite = torch.isfinite

    def finite_to_the_step(value: Tensor) -> Tensor:
        """The thread that writes the checkpoint before may look at the same time, and is not to be deceived."""
        return torch.ones((), dtype=torch.bool) if current_thread() is main_thread() else isfinite(value)

    def gradients(trainer: Trainer, batch: Batch, *arguments: Any) -> Any:
        output = whole(trainer, batch, *arguments)
        if trainer.step == 5:
            for parameter in trainer.objective.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        return output

    def train_step(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        install(torch, "isfinite", finite_to_the_step)
        try:
            return step(trainer, *arguments, **named)
        finally:
            install(torch, "isfinite", isfinite)

    whole, step = Trainer._gradients, Trainer.train_step
    install(Trainer, "_gradients", gradients)
    install(Trainer, "train_step", train_step)


CHANGES: dict[str, Callable[[], None]] = {
    "spikes": spikes,
    "slow": slow,
    "hangs": hangs,
    "nohup": nohup,
    "dies before step 1": dies_before(1),
    "dies before step 11": dies_before(11),
    "dies before step 22": dies_before(22),
    "dies before step 33": dies_before(33),
    "dies in the third part": dies_in_the_third_part,
    "dies after an epoch": dies_after_an_epoch,
    "dies while measuring": dies_while_measuring,
    "dies while the result is written": dies_while_the_result_is_written,
    "averages forgotten": after_taking_up(_averages),
    "moments forgotten": after_taking_up(_moments),
    "dying codes forgotten": after_taking_up(_dying_codes),
    "codebook forgotten": after_taking_up(_codebook),
    "rollbacks forgotten": after_taking_up(_rollbacks),
    "losses forgotten": after_taking_up(_losses),
    "order from the start": order_from_the_start,
    "late noise": late_noise,
    "late copies": late_copies,
    "metrics stay": metrics_stay,
    "begins anew whatever happens": begins_anew_whatever_happens,
    "no number is no error": no_number_is_no_error,
}
