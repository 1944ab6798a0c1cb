"""Which weights of a run are used: those that were best on validation images, or the last."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import nn

from smalti.core.files import remove_folder, remove_leftovers
from smalti.core.log import Log
from smalti.runs.folder import RunFolder
from smalti.training.checkpoint import FOLDER, Checkpoint, read_checkpoint, write_checkpoint
from smalti.training.trainer import Trainer

Choose: TypeAlias = Literal["best", "last"]

_BEST = "best"
_STAGE = "validation"


class Measured(NamedTuple):
    """What a network is worth on some images.

    Attributes:
        scores: single numbers, to choose by.
        details: what there is to say of each class beside them, as JSON values.
    """

    scores: dict[str, float]
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All of it, as in result.json."""
        return self.scores | self.details


@dataclass(frozen=True)
class Best:
    """Measures weights as they are saved, and keeps the best of them in best/. Scores are in metrics.jsonl.

    Attributes:
        measure: what a network is worth on validation images.
        by: the score that is to be large.
    """

    folder: RunFolder
    log: Log
    measure: Callable[[nn.Module], Measured]
    by: str

    def look(self, trainer: Trainer) -> None:
        """Measure the weights as they are now; of equally good ones the last are kept."""
        best = self.folder.path / _BEST
        remove_leftovers(best / FOLDER)
        for folder in (best / FOLDER).glob("step-*"):  # of a run that went on from an older checkpoint, otherwise
            if int(folder.name.removeprefix("step-")) > trainer.step:
                remove_folder(folder)
        network = copy.deepcopy(trainer.trained)
        network.eval()
        measured = self.measure(network).scores
        named = {f"{_STAGE}_{name}": value for name, value in measured.items()}
        before = [line[f"{_STAGE}_{self.by}"] for line in self._lines()]
        self.log.record(stage=_STAGE, step=trainer.step, **named)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self.log.say(f"{_STAGE} after step {trainer.step}: {shown}")
        if measured[self.by] >= max(before, default=0.0):
            write_checkpoint(best, trainer.step, trainer.trained, {})

    def _lines(self) -> list[dict[str, Any]]:
        return [line for line in self.folder.read_metrics() if line["stage"] == _STAGE]


def read_chosen(run: Path, choose: Choose) -> Checkpoint:
    """The weights that a finished run has chosen."""
    return read_checkpoint(run / _BEST if choose == "best" else run)
