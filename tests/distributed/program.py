"""What a rank of a test does: the command line, perhaps with a fault at one of its steps.

Ranks are forked from a process that has imported this, and all that the command line imports later.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by every optimiser
import torch.distributed.fsdp
import tyro  # noqa: F401

import smalti.runs.finetune
import smalti.runs.pretrain  # noqa: F401
from smalti.cli import main
from smalti.core.errors import DataError
from smalti.core.files import write_folder
from smalti.training import checkpoint
from smalti.training.trainer import Trainer


def run(arguments: list[str], environment: Mapping[str, str], said: str, fault: str) -> None:
    """Become a rank: in a session of its own, all that it says in the file `said`."""
    os.setsid()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    if "FOLDER" in environment:
        os.chdir(environment["FOLDER"])
    if fault:
        inject(fault)
    code = main(arguments)
    sys.stderr.flush()
    os._exit(code)


def inject(fault: str) -> None:
    """A fault is `WHAT:STEP`, where a step begins, or `WHAT:save:STEP`, while its checkpoint is written."""
    what, *when = fault.split(":")
    if len(when) == 2:

        def write(folder: Path, files: dict[str, bytes]) -> None:
            if folder.name == f"step-{int(when[1]):08d}":
                happen(what)
            write_folder(folder, files)

        module: Any = checkpoint
        module.write_folder = write
        return
    kind: Any = Trainer
    whole_step = Trainer.train_step

    def train_step(trainer: Trainer, batch: Any, *arguments: Any) -> Any:
        if trainer.step == int(when[0]):
            if what == "nan":
                batch = replace(batch, image=torch.full(batch.image.shape, float("nan")))
            happen(what)
        return whole_step(trainer, batch, *arguments)

    kind.train_step = train_step


def happen(what: str) -> None:
    """Be killed, stopped, slow or hung, or fail."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "slow":
        time.sleep(2)
    elif what == "hang":
        time.sleep(600)
    elif what == "fail":
        raise DataError("the disk of this machine is gone", fix="mount it")


if __name__ == "__main__":
    what, _, where = os.environ.get("FAULT", "").partition("@")
    if where == os.environ["RANK"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        inject(what)
    sys.exit(main(sys.argv[1:]))
