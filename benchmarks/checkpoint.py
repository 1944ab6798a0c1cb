"""How long training stands still for a checkpoint, written beside it against written in its place.

    python benchmarks/checkpoint.py --json              # 85 MB: 12 blocks of width 192 with both moments
    python benchmarks/checkpoint.py --width 768 --json  # as wide as ViT-B, 1.4 GB

Both train the same network in the same process, in turn, the order swapped from round to round: `--every` steps, one
save, `--every` steps; the writer is waited for outside. `stalled_seconds` is how long the call of save takes,
`slowed_seconds` what the steps after it take longer than as many before it (the thread hashes and writes meanwhile),
and `share` the sum of both against the time of all steps between two saves at the recipe's interval (`--interval`).
Medians over the rounds.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from smalti.models.layers import Block
from smalti.training.checkpoint import BackgroundWriter, write_checkpoint
from smalti.training.training_plan import Plan


@dataclass(frozen=True)
class Training:
    """A stack of transformer blocks with its optimiser, on random numbers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor

    @staticmethod
    def of(width: int, depth: int, batch_size: int) -> "Training":
        """Blocks of `width` with heads of 64, and a batch of 64 tokens an image."""
        model = nn.Sequential(*(Block(width, max(1, width // 64), 4.0) for _ in range(depth)))
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 64, width, generator=generator)
        return Training(model, torch.optim.AdamW(model.parameters(), fused=True), images)

    def step(self) -> None:
        self.model(self.images).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Unaveraged weights and both moments, as a run saves them."""
        state = {f"raw.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        return state


@dataclass(frozen=True)
class Measured:
    """One save, in seconds."""

    stalled: float
    slowed: float
    step: float


def measured(training: Training, save: Callable[[], object], every: int) -> Measured:
    """Steps, a save, steps."""
    before = timed(training.step, every)
    stalled = timed(save, 1)
    after = timed(training.step, every)
    return Measured(stalled, after - before, before / every)


def timed(call: Callable[[], object], times: int) -> float:
    """Seconds of wall clock."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began


def compare(training: Training, folder: Path, every: int, rounds: int) -> dict[str, list[Measured]]:
    """Both ways, one measurement a round."""
    found: dict[str, list[Measured]] = {"waited_for": [], "beside": []}
    training.step()
    for number in range(rounds):
        for way in sorted(found, reverse=bool(number % 2)):
            with BackgroundWriter() as writer:
                write = writer.write if way == "beside" else write_checkpoint
                save = partial(write, folder / way, number, training.model.state_dict(), training.state())
                found[way].append(measured(training, save, every))
    return found


def main() -> None:
    """Measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--every", type=int, default=4, help="steps before and after a save")
    parser.add_argument("--interval", type=int, default=Plan().save_every, help="steps between two saves of a run")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", help="where to write, to measure that disk; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    training = Training.of(given.width, given.depth, given.batch_size)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        found = compare(training, Path(folder), given.every, given.rounds)
        megabytes = sum(path.stat().st_size for path in newest(Path(folder) / "beside").iterdir()) / 1e6
    result: dict[str, object] = {"machine": platform.processor() or platform.machine(), "megabytes": megabytes}
    for way, saves in found.items():
        stalled, slowed, step = (
            statistics.median(getattr(save, name) for save in saves) for name in ("stalled", "slowed", "step")
        )
        result[way] = {
            "stalled_seconds": stalled,
            "slowed_seconds": slowed,
            "step_seconds": step,
            "share": (stalled + max(slowed, 0.0)) / (given.interval * step),
        }
    print(json.dumps(result, indent=None if given.json else 2))


def newest(run: Path) -> Path:
    """The last checkpoint written."""
    return max((run / "checkpoints").iterdir())


if __name__ == "__main__":
    main()
