"""Starts the processes of a run, forked from one that has imported everything, and ends whatever is left of them."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.distributed import program

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.program"])
_PATIENCE = 120.0
_OF_TORCH = re.compile(r"(\[rank\d+\]:)?\[[WE]")


class Ranks:
    """Processes with the environment that torchrun gives to each."""

    def __init__(
        self,
        folder: Path,
        commands: Sequence[Sequence[str] | None],
        faults: Mapping[int, str],
        environment: Mapping[str, str],
        folders: Sequence[Path],
    ) -> None:
        self.said = [folder / f"rank{number}.txt" for number in range(len(commands))]
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(commands))}
        meet |= environment
        self.where = f"{meet['MASTER_ADDR']}:{meet['MASTER_PORT']}"
        self.processes = {}
        for number, command in enumerate(commands):
            if command is None:
                continue
            self.said[number].unlink(missing_ok=True)
            given = meet | {"RANK": str(number), "LOCAL_WORLD_SIZE": str(len(commands))}
            given |= {"FOLDER": str(folders[number])} if folders else {}
            arguments = (list(command), given, str(self.said[number]), faults.get(number, ""))
            process = _CONTEXT.Process(target=program.run, args=arguments)
            process.start()
            self.processes[number] = process

    def pid(self, number: int) -> int:
        found = self.processes[number].pid
        assert found is not None
        return found

    def codes(self, *numbers: int, within: float = _PATIENCE) -> list[int | None]:
        """How these ranks have ended; None where one has not."""
        until = time.monotonic() + within
        for number in numbers:
            self.processes[number].join(max(0.0, until - time.monotonic()))
        return [self.processes[number].exitcode for number in numbers]

    def all_codes(self) -> list[int | None]:
        return self.codes(*self.processes)

    def text(self, number: int) -> str:
        return self.said[number].read_text() if self.said[number].exists() else ""

    def unwanted(self) -> str:
        """All that ranks other than 0 have printed, and what libtorch has printed by itself in rank 0."""
        by_torch = [line for line in self.text(0).splitlines(keepends=True) if _OF_TORCH.match(line)]
        return "".join([*by_torch, *(self.text(number) for number in self.processes if number > 0)])

    def error(self, number: int) -> str:
        """The last line of a rank."""
        return self.text(number).splitlines()[-1]

    def wait_until(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE
        while not true():
            assert time.monotonic() < until, "\n".join(map(self.text, self.processes))
            time.sleep(0.02)

    def left(self) -> list[str]:
        """What runs in the sessions of the ranks, after a moment; what waits to be asked for its end does not count."""
        found: list[str] = []
        for _ in range(50):
            listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True)
            lines = [line.split(None, 2) for line in listed.stdout.splitlines()]
            sessions = {process.pid for process in self.processes.values()}
            found = [args for session, stat, args in lines if int(session) in sessions and stat[0] != "Z"]
            if not found:
                break
            time.sleep(0.1)
        return found

    def end(self) -> None:
        for process in self.processes.values():
            for send in (os.killpg, os.kill):  # before it has a session of its own, only itself
                with suppress(ProcessLookupError, PermissionError):
                    send(process.pid or 0, signal.SIGKILL) if process.pid and process.exitcode is None else None
            process.join()


@contextmanager
def started(
    folder: Path,
    commands: Sequence[Sequence[str] | None],
    faults: Mapping[int, str] | None = None,
    environment: Mapping[str, str] | None = None,
    folders: Sequence[Path] = (),
) -> Iterator[Ranks]:
    """A process for each command line, none where that is None.

    Args:
        faults: by rank, as of `program.inject`.
        folders: where each rank works.
    """
    ranks = Ranks(folder, commands, faults or {}, environment or {}, folders)
    try:
        yield ranks
    finally:
        ranks.end()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
