"""Whether a run survives a fault while it writes a checkpoint: the promise, and every operation it can break at."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from smalti.core.errors import CheckpointError, OutputError
from smalti.core.files import remove_leftovers
from smalti.core.stored import is_intact
from smalti.training import checkpoint
from smalti.training.checkpoint import read_checkpoint
from tests.faults.disk import LOSSES, Crashed, Disk, Fault

_FAILURE = "cannot write .*; (No space left|Input/output error|.* bytes, and .* were written)"
WRITES_ONLY: tuple[Fault, ...] = ("short write", "torn write")


def save(run: Path, step: int, value: float) -> None:
    """A checkpoint whose every number is `value`."""
    layer = nn.Linear(2, 3)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    checkpoint.write_checkpoint(run, step, layer.state_dict(), {"moment": torch.full((2, 2), value)})


def value_of(run: Path) -> tuple[int, float]:
    """(step, value) of what is read; every number of it is the same, as it was written."""
    found = read_checkpoint(run)
    assert set(found.model) == {"weight", "bias"}
    assert set(found.state) == {"moment"}
    numbers = torch.cat([tensor.flatten() for tensor in (*found.model.values(), *found.state.values())])
    assert torch.equal(numbers, numbers[:1].expand(13)), "what is read is not what was written"
    return found.step, float(numbers[0])


@dataclass(frozen=True)
class Trial:
    """Checkpoints that are there, as (step, value), oldest first; then one more is written."""

    there: tuple[tuple[int, float], ...]
    written: tuple[int, float]

    def run_all(self, fault: Fault, folder: Path) -> int:
        """Break at every operation that the fault is possible at, one a time. Returns how many there are."""
        template = folder / "template"
        (template / "run").mkdir(parents=True)
        for step, value in self.there:
            save(template / "run", step, value)
        broken = [
            at
            for at, name in enumerate(self._operations(template, folder / "dry"))
            if fault not in WRITES_ONLY or name == "write"
        ]
        for at in broken:
            self._survives(fault, at, template, folder / f"{at:03d}")
        return len(broken)

    def _operations(self, template: Path, folder: Path) -> list[str]:
        """What happens where nothing fails; that too is held to the promise."""
        shutil.copytree(template, folder / "disk")
        disk = Disk(folder / "disk")
        with disk.attached():
            save(disk.root / "run", *self.written)
        for loss in LOSSES:
            self._keeps_promise(disk.after_power_cut(loss, folder / loss) / "run", returned=True)
        disk.close()
        return disk.done

    def _survives(self, fault: Fault, at: int, template: Path, folder: Path) -> None:
        """One fault.

        Raises:
            AssertionError: the promise is broken.
        """
        folder.mkdir()
        shutil.copytree(template, folder / "disk")
        disk = Disk(folder / "disk", fault, at)
        said: str | None = None
        returned = False
        try:
            with disk.attached():
                save(disk.root / "run", *self.written)
            returned = True
        except Crashed:
            pass
        except OutputError as error:
            said = str(error)
        if said is not None:
            assert re.search(_FAILURE, said), said
            assert not any(path.name.startswith(".") for path in disk.root.rglob("*")), "a failure leaves something"
        for loss in LOSSES:
            run = disk.after_power_cut(loss, folder / loss) / "run"
            self._keeps_promise(run, returned)
        if fault == "crash":
            self._goes_on(folder / "nothing" / "run")
        disk.close()

    def _keeps_promise(self, run: Path, returned: bool) -> None:
        if not self.there and not returned and not any(run.glob("checkpoints/step-*")):
            return
        try:
            found = value_of(run)
        except CheckpointError as error:
            raise AssertionError("nothing is left") from error
        newest = {self.written} if returned else {self.written, *self.there[-1:]}
        assert found in newest, f"{found} is read"
        whole = {name.removesuffix(".replaced") for name in _steps(run) if is_intact(run / "checkpoints" / name)}
        assert len(whole) >= min(2, len(self.there)), "too few are left"
        for manifest in run.glob(f"checkpoints/.step-{self.written[0]:08d}.*/MANIFEST.json"):
            assert is_intact(manifest.parent) or not _is_json(manifest), "a manifest speaks of what is not there"

    def _goes_on(self, run: Path) -> None:
        """The next run cleans up and saves, with nobody's help."""
        remove_leftovers(run / "checkpoints")
        save(run, 99, 0.5)
        assert value_of(run) == (99, 0.5)
        assert not any(path.name.startswith(".") for path in (run / "checkpoints").iterdir())


def _steps(run: Path) -> list[str]:
    return [path.name for path in run.glob("checkpoints/step-*")]


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
