"""A program that forks runs: each is a process of its own, and none waits for imports. One is alive at a time.

It reads a JSON object a line: the command, a file for what the run says, and names of changes from
`tests/faults/changes.py`, joined by `+`; or the text of a program, which is given the command as its arguments. It
answers with the process id, and with how the process ended.
"""

import json
import os
import signal
import sys

import torch
import torch._dynamo  # by every optimiser
import tyro  # noqa: F401

from smalti.cli import main
from smalti.recipes import tiny
from smalti.runs import finetune, pretrain, sections, train_tokenizer
from tests.faults.changes import CHANGES

WARM = (finetune.main, pretrain.main, sections, tiny, train_tokenizer.main)
"""What runs import is here already."""


def run(command: list[str], said: str, change: str, program: str) -> int:
    """The child: a group of its own, what it says in a file, one thread."""
    os.setsid()
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    for name in filter(None, change.split("+")):
        CHANGES[name]()
    if not program:
        return main(command)
    sys.argv = ["-c", *command]
    exec(program, {"__name__": "__main__"})
    return 0


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            try:
                code = run(**order)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
