"""Several at once: two writers, a writer and a reader, threads. Cases J04, J05, J06 and J08 of the list."""

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from smalti.recipes import nano
from smalti.runs.train_tokenizer import main as train
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training import checkpoint
from tests.faults.trial import save, value_of
from tests.small_runs import flat_pictures, result

STARTER = """
import dataclasses, sys
from smalti.core.errors import SmaltiError
from smalti.runs.folder import create, writing

@dataclasses.dataclass(frozen=True)
class Config:
    out: str = ""

print("ready", flush=True)
for line in sys.stdin:
    out = line.rstrip("\\n")
    try:
        with writing(out):
            create(out, Config(out))
            print("won", flush=True)
            sys.stdin.readline()  # and keeps it until it is told
    except SmaltiError as error:
        print(error.exit_code, error, flush=True)
        sys.stdin.readline()
    print("ended", flush=True)
"""


class Starter:
    """A process that starts runs when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.heard() == "ready"

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


@contextmanager
def started(count: int) -> Iterator[list[Starter]]:
    some = [Starter() for _ in range(count)]
    try:
        yield some
    finally:
        for one in some:
            one.process.kill()
            one.process.communicate()


def start_together(pair: list[Starter], tries: int, folder: Path) -> None:
    """Of two runs one wins each time, and the other is told who."""
    for attempt in range(tries):
        out = folder / str(attempt)
        for one in pair:
            one.tell(str(out))
        said = [one.heard() for one in pair]
        assert said.count("won") == 1, said
        winner, loser = pair[said.index("won")], said[1 - said.index("won")]
        assert loser.startswith(f"7 {out} is being written; by process {winner.process.pid} on "), loser
        assert loser.endswith("; wait for it, or use another --out")
        assert json.loads((out / "config.json").read_text())["config"]["out"] == str(out)
        for one in pair:
            one.tell("")
            assert one.heard() == "ended"
        assert [path.name for path in out.iterdir()] == ["config.json"]


def test_j04_j05_of_two_processes_one_wins_and_the_lock_of_a_killed_one_is_in_nobodys_way(tmp_path: Path) -> None:
    """20 starts; the thousand are among the slow tests."""
    with started(2) as pair:
        start_together(pair, 20, tmp_path)
        one, two = pair
        one.tell(str(tmp_path / "run"))
        assert one.heard() == "won"
        one.process.kill()
        one.process.wait()
        assert (tmp_path / "run" / ".lock").exists()
        (tmp_path / "run" / "config.json").unlink()  # or it would be a run to go on with
        two.tell(str(tmp_path / "run"))
        assert two.heard() == "won"


@pytest.mark.slow
def test_j04_a_thousand_times(tmp_path: Path) -> None:
    with started(2) as pair:
        start_together(pair, 1000, tmp_path)


def test_j06_who_reads_while_checkpoints_are_written_always_gets_a_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 0, 0.0)
    seen: list[tuple[int, float]] = []
    last = 60

    def write() -> None:
        for step in range(1, last + 1):
            save(tmp_path, step, float(step))

    writer = Thread(target=write)
    writer.start()
    while not seen or seen[-1][0] < last:
        seen.append(value_of(tmp_path))
    writer.join()
    assert all(step == value for step, value in seen)
    assert seen == sorted(seen)
    assert capsys.readouterr().err == "", "what has made way is not called damaged"


def test_j06_a_reader_whose_checkpoints_have_all_made_way_reads_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        save(tmp_path, step, float(step))
    read, late = checkpoint._read, [3, 4]

    def slow(step: int, folder: Path) -> Any:
        while late:
            save(tmp_path, late[0], float(late.pop(0)))
        return read(step, folder)

    monkeypatch.setattr(checkpoint, "_read", slow)
    assert value_of(tmp_path) == (4, 4.0)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainTokenizer:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("together")
    start = nano.train_tokenizer()
    return dataclasses.replace(
        start,
        out=str(folder / "run"),
        data=dataclasses.replace(start.data, path=str(flat_pictures(folder / "photos", 12))),
        plan=dataclasses.replace(start.plan, steps=2, batch_size=8),
        init_images=0,
        device="cpu",
        precision="fp32",
    )


def test_j08_a_run_that_python_starts_in_a_thread_or_a_notebook_leaves_its_signals_alone(
    config: TrainTokenizer, tmp_path: Path
) -> None:
    """A notebook has an event loop that is running, and handlers of its own."""

    def own(number: int, frame: object) -> None: ...

    before = {number: signal.signal(number, own) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        here, there = (dataclasses.replace(config, out=str(tmp_path / name)) for name in ("loop", "thread"))

        async def cell() -> None:
            train(here)

        asyncio.run(cell())
        thread = Thread(target=train, args=(there,))
        thread.start()
        thread.join()
        assert [signal.getsignal(number) for number in before] == [own, own]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert result(tmp_path / "loop") == result(tmp_path / "thread")
