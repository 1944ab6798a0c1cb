"""What a rank of a test does: the command line, perhaps with a fault at one of its steps."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

import smalti.runs.pretrain
import smalti.runs.train_tokenizer  # noqa: F401  (a rank is forked from a process that has imported all this)
from smalti.cli import main
from smalti.training import checkpoint
from smalti.training.loop import Trainer


def run(arguments: list[str], environment: Mapping[str, str], said: str, fault: str) -> None:
    """Become a rank: in a session of its own, all that it says in the file `said`."""
    os.setsid()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    if fault:
        inject(fault)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def inject(fault: str) -> None:
    """A fault is `WHAT:STEP`, at the begin of a step, or `WHAT:save`, in the middle of writing a checkpoint."""
    what, when = fault.split(":")
    if when == "save":
        whole_write = checkpoint.write_folder

        def write_folder(*arguments: Any) -> None:
            happen(what)
            whole_write(*arguments)

        checkpoint.write_folder = write_folder
        return
    whole_step = Trainer.train_step

    def train_step(trainer: Trainer, batch: Any, compute: Any) -> Any:
        if trainer.step == int(when):
            if what == "nan":
                with torch.no_grad():
                    next(trainer.objective.model.parameters()).view(-1)[0] = float("nan")
            happen(what)
        return whole_step(trainer, batch, compute)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def happen(what: str) -> None:
    """Be killed, stopped, slow."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "sleep":
        time.sleep(600)


if __name__ == "__main__":
    if (where := os.environ.get("FAULT", "")) and where.split("@")[1] == os.environ["RANK"]:
        inject(where.split("@")[0])
    sys.exit(main(sys.argv[1:]))
