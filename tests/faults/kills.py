"""Real runs that are really killed, at any time and several times in a row; in the end nobody can tell.

    python -m tests.faults.kills --kills 200 --seed 0 [--kind mim]

prints for each kind of run how many of its kills were survived bit for bit.
"""

import argparse
import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.small_runs import FINETUNE_FLAGS, PRETRAIN_FLAGS, TOKENIZER_FLAGS, pictures, weights

ROOT = Path(__file__).parents[2]
STEPS = 24
_LONGEST = 240.0
"""Seconds that a run may take, on a machine that is busy with something else."""


class Nursery:
    """Starts runs as processes that are forked from a warm one, and kills them."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said"
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
            cwd=ROOT,
        )

    def begin(self, command: list[str], change: str = "", program: str = "") -> int:
        """Begin a run, or a program whose arguments are the command; the process id, which is that of its group too."""
        assert self._process.stdin is not None
        self.said.unlink(missing_ok=True)
        order = {"command": command, "said": str(self.said), "change": change, "program": program}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._line(_LONGEST) or 0)

    def ended(self, within: float = _LONGEST) -> int | None:
        """How the run ended, negative for a signal; None: not within that many seconds."""
        line = self._line(within)
        return None if line is None else int(line)

    def run(self, command: list[str], change: str = "") -> int | None:
        """A run to its end."""
        return self.ended_and_left(self.begin(command, change))

    def killed_itself(self, program: str, *arguments: str) -> bool:
        """Whether a program ended by SIGKILL."""
        child, code = self.begin(list(arguments), program=program), self.ended()
        if code is None:
            os.killpg(child, signal.SIGKILL)
            self.ended()
        return code == -signal.SIGKILL

    def ended_and_left(self, child: int) -> int | None:
        """How a run ended, and that nothing is left of it."""
        code = self.ended()
        assert_nothing_left(child)
        return code

    def killed(self, command: list[str], after: float, change: str = "") -> bool:
        """Begin a run and kill it after so many seconds; False: it had ended by itself, as it should."""
        child = self.begin(command, change)
        code = self.ended(after)
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = self.ended()
        assert_nothing_left(child)
        assert code in (0, -signal.SIGKILL), self.told()
        return code != 0

    def told(self) -> str:
        """What the latest run has said."""
        return self.said.read_text() if self.said.exists() else ""

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_LONGEST)
        self._process.stdout.close()

    def _line(self, within: float) -> bytes | None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within)
        return self._read() if ready else None

    def _read(self) -> bytes:
        """A line, byte by byte: what a buffer has swallowed, `select` does not see."""
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._process.stdout.fileno(), 1)
            assert byte, "the nursery has died"
            line += byte
        return line


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    one = Nursery(folder)
    try:
        yield one
    finally:
        one.close()


def assert_nothing_left(group: int) -> None:
    """D10: of a run that has ended, however, no process and no shared memory stays, after a moment.

    Processes that wait to be reaped do not count. Who holds a lock is dead then, and the system has released it.
    """
    deadline = time.monotonic() + 30
    while (told := _processes(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert told == []
    assert list(Path("/dev/shm").glob(f"pym-{group}-*")) == []


def _processes(group: int) -> list[str]:
    """Their numbers and states; /proc/N/stat is `N (NAME) STATE PARENT GROUP ...`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group, *_ = path.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                found.append(f"{path.parent.name} {state}")
    return found


@dataclass(frozen=True)
class World:
    """What runs learn from."""

    photos: Path
    tokenizer: Path

    @staticmethod
    def made(folder: Path, one: Nursery) -> "World":
        world = World(pictures(folder / "photos"), folder / "tokenizer")
        flags = [*TOKENIZER_FLAGS, "--data", str(world.photos), "--out", str(world.tokenizer), "--plan.steps", "3"]
        assert one.run(["train-tokenizer", "tiny", *flags]) == 0, one.told()
        return world


_SAVE_OFTEN = ["--plan.steps", str(STEPS), "--plan.save-every", "3"]
_STREAM = ["--data.memory", "stream", "--data.num-workers"]

Kind = Callable[[World, Path], list[str]]
"""A kind of run: the command that begins it in a folder."""


def dvae(world: World, run: Path) -> list[str]:
    """A07: temperature and beta change at every step, noise is drawn, codes die and come back, weights are averaged."""
    alive = ["--relaxation.dead-after", "3", "--relaxation.anneal-ratio", "1", "--tokenizer.vocab-size", "128"]
    return ["train-tokenizer", "tiny", *TOKENIZER_FLAGS, *alive, *_SAVE_OFTEN, *_where(world, run)]


def vq(world: World, run: Path) -> list[str]:
    """A codebook of moving averages, whose dead codes are drawn anew; bf16."""
    kind = ["--tokenizer.code-dim", "4", "--tokenizer.dead-after", "3", *_BF16]
    return ["train-tokenizer", "vq", *_without_format(TOKENIZER_FLAGS), *kind, *_SAVE_OFTEN, *_where(world, run)]


def mim(world: World, run: Path) -> list[str]:
    """A09: steps in four parts; tokens from a cache, which is found as the run that was killed has left it."""
    rest = ["--plan.accumulate", "4", "--num-views", "2", "--ema-decay", "0.9"]
    cache = ["--token-cache", str(run.with_name(f"{run.name}-cache"))]
    return ["pretrain", "tiny", *PRETRAIN_FLAGS, *rest, *cache, *_SAVE_OFTEN, *_where(world, run, world.tokenizer)]


def soft(world: World, run: Path, *, num_workers: int = 0) -> list[str]:
    """The tokenizer's posterior as the target, in bf16; images are streamed."""
    rest = ["--target", "soft-tokens", *_BF16, *_STREAM, str(num_workers), *_SAVE_OFTEN]
    return ["pretrain", "tiny", *_without_format(PRETRAIN_FLAGS), *rest, *_where(world, run, world.tokenizer)]


def workers(world: World, run: Path) -> list[str]:
    """The same with data workers."""
    return soft(world, run, num_workers=2)


def decoder(world: World, run: Path) -> list[str]:
    """An encoder of visible patches under two masks, a decoder that predicts half of the others; else as `mim`."""
    visible = ["--decoder", "cross-attention", "--decoder.depth", "2", "--decoder.predicted", "0.5"]
    return [*mim(world, run), *visible, "--decoder.mix-layers", "--masking", "random", "--masks-per-image", "2"]


def compiled(world: World, run: Path) -> list[str]:
    """Compiled blocks."""
    return [*mim(world, run), "--compile", "on"]


def rollback(world: World, run: Path) -> list[str]:
    """I04: three losses jump, and the run may roll back twice; with the change `spikes`."""
    flags = ["--plan.rollback", "2", "--ema-decay", "0.9", "--plan.steps", "40", "--plan.save-every", "4"]
    return ["pretrain", "tiny", *PRETRAIN_FLAGS, *flags, *_where(world, run, world.tokenizer)]


def finetune(world: World, run: Path) -> list[str]:
    """Fine-tuning: mixed and augmented images, averaged weights, and the best of them kept beside the checkpoints."""
    rest = ["--task.mixing.mixup", "0.8", "--task.mixing.cutmix", "1", "--ema-decay", "0.9"]
    return ["finetune", "tiny", *FINETUNE_FLAGS, *rest, *_SAVE_OFTEN, *_where(world, run)]


def epochs(world: World, run: Path) -> list[str]:
    """Six epochs of two batches."""
    flags = ["--plan.steps", "12", "--plan.save-every", "3", "--plan.batch-size", "12", "--plan.accumulate", "4"]
    return ["pretrain", "tiny", *PRETRAIN_FLAGS, *flags, "--data.limit", "30", *_where(world, run, world.tokenizer)]


KINDS: dict[str, Kind] = {
    "dvae": dvae,
    "vq": vq,
    "mim": mim,
    "decoder": decoder,
    "rollback": rollback,
    "finetune": finetune,
}
"""Those of every test."""

CHANGE = {"rollback": "spikes"}
"""What is changed in the program, for some kinds."""

MORE_KINDS: dict[str, Kind] = {"soft": soft, "workers": workers, "compiled": compiled, "epochs": epochs}

_BF16 = ["--precision", "bf16"]


def _where(world: World, run: Path, tokenizer: Path | None = None) -> list[str]:
    given = [] if tokenizer is None else ["--tokenizer", str(tokenizer)]
    return ["--data", str(world.photos), *given, "--out", str(run)]


def _without_format(flags: list[str]) -> list[str]:
    place = flags.index("--precision")
    return flags[:place] + flags[place + 2 :]


@dataclass(frozen=True)
class Whole:
    """A run that nobody has interrupted: how to begin one like it, what it left, and how long it took, in seconds."""

    command: Callable[[Path], list[str]]
    files: dict[str, bytes]
    seconds: float
    change: str = ""

    @staticmethod
    def made(one: Nursery, name: str, world: World, folder: Path, change: str = "") -> "Whole":
        kind, change = (KINDS | MORE_KINDS)[name], change or CHANGE.get(name, "")

        def command(run: Path) -> list[str]:
            return kind(world, run)

        began = time.monotonic()
        assert one.run(command(folder), change) == 0, one.told()
        return Whole(command, end_of(folder), time.monotonic() - began, change)


def end_of(run: Path) -> dict[str, bytes]:
    """All that a run ends in: weights, averages, moments and counters of its last step, losses, result."""
    files = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "result.json", "data.json")}
    unfinished = [str(path.relative_to(run)) for path in run.rglob(".*")]
    assert unfinished == [], f"the lock or something unfinished is left: {unfinished}"
    return files | weights(run)


def digest(files: dict[str, bytes]) -> str:
    """R of the list of cases, as a few letters."""
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(name.encode() + content)
    return whole.hexdigest()[:12]


def go_on(whole: Whole, run: Path) -> list[str]:
    """The command that goes on with a run, or begins it where it was killed before it had said what it is."""
    command = whole.command(run)
    return [command[0], "--resume", str(run)] if (run / "config.json").exists() else command


@dataclass(frozen=True)
class Chain:
    """A run that was killed several times in a row, and finished then.

    Attributes:
        kills: those that met it alive.
        same: whether it ended in the bits of the run that nobody interrupted.
    """

    kills: int
    same: bool
    differing: tuple[str, ...] = ()


def chain(one: Nursery, whole: Whole, run: Path, chance: random.Random, most: int, changed: str = "") -> Chain:
    """A10: kill a run up to `most` times in a row, each time after a share of the whole time drawn from [0, 1).

    Args:
        changed: a change that breaks something, for what goes on.
    """
    kills = 0
    while kills < most:
        after = chance.random() * whole.seconds
        if not one.killed(go_on(whole, run), after, changed or whole.change):
            break
        kills += 1
    if not (run / "result.json").exists() or kills == most:
        assert one.run(go_on(whole, run), changed or whole.change) == 0, one.told()
    found = end_of(run)
    differing = tuple(name for name in whole.files if found.get(name) != whole.files[name])
    shutil.rmtree(run)
    return Chain(kills, not differing and found.keys() == whole.files.keys(), differing)


@dataclass(frozen=True)
class Survived:
    """How many kills were followed by a run that ended as if nothing had happened, and the seeds of those that did not.

    Attributes:
        seeds: the first, and the one after the last.
    """

    kills: int
    failed: tuple[int, ...]
    seeds: tuple[int, int]


def trial(one: Nursery, whole: Whole, folder: Path, kills: int, seed: int, in_a_row: int = 5) -> Survived:
    """Kill runs until there have been `kills` kills; each run has its own seed."""
    first, done, survived, failed = seed, 0, 0, list[int]()
    while done < kills:
        found = chain(one, whole, folder / f"run-{seed}", random.Random(seed), min(in_a_row, kills - done))
        done += found.kills
        survived += found.kills if found.same else 0
        failed += [] if found.same else [seed]
        seed += 1
    return Survived(survived, tuple(failed), (first, seed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=[*KINDS, *MORE_KINDS])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, nursery(Path(scratch)) as one:
        world = World.made(Path(scratch), one)
        for name in given.kind or [*KINDS, *MORE_KINDS]:
            whole = Whole.made(one, name, world, Path(scratch) / f"whole-{name}")
            found = trial(one, whole, Path(scratch), given.kills, given.seed)
            line = {"kind": name, "of": given.kills, "survived": found.kills, "seeds": found.seeds}
            print(
                json.dumps(
                    line | {"failed": found.failed, "run": digest(whole.files), "seconds": round(whole.seconds, 2)}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
