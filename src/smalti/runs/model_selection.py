"""Model selection: the labelled images for training, validation and test, and which weights are used.

The selected weights are those with the best validation score, or the last.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import nn

from smalti.core.errors import DataError, is_out_of_memory
from smalti.core.files import remove_folder, remove_leftovers
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset, Renumbered
from smalti.data.datasets.folder import but_a_twin
from smalti.data.datasets.layout import read_layout
from smalti.data.datasets.open import EMBEDDED
from smalti.data.groups import together
from smalti.data.load import AnyImages, Data, TrainingData, read_source, renumbered, unlabelled
from smalti.data.splits import few_labels, hold_out
from smalti.runs.folder import RunFolder
from smalti.training.checkpoint import FOLDER, write_checkpoint
from smalti.training.trainer import Trainer

Outputs: TypeAlias = Callable[[tuple[str, ...]], tuple[str, ...]]
Choose: TypeAlias = Literal["best", "last"]
BEST = "best"
_STAGE = "validation"


class LabelledSplits(NamedTuple):
    """Training, validation and test images. No image is in two of the three.

    Attributes:
        train: the training images; its `held_out` is the validation images.
    """

    train: AnyImages
    test: ImageDataset

    @property
    def validation(self) -> ImageDataset:
        return self.train.held_out

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class numbers."""
        return self.train.train.classes


class Shares(NamedTuple):
    """How labelled images are split.

    Attributes:
        validation: share of the training images that is held out for validation.
        labels, per_class: as in `few_labels`.
    """

    validation: float
    labels: float
    per_class: int | None
    seed: int


def divide(
    images: AnyImages, data: Data, test: str, shares: Shares, log: Log, outputs: Outputs = tuple, validation: str = ""
) -> LabelledSplits:
    """Hold out validation images, then keep as many labels as are asked for.

    Args:
        test: DATA of separate test images. The held-out images of `data` are then for validation, and nothing else is
            held out; otherwise the held-out images of `data` are the test set.
        validation: DATA of separate validation images; no training images are then held out for validation.
        outputs: maps class names to output names: all of the classes, or the labels in their names.

    Raises:
        DataError: there are no labels, too few images have some, or the separate images have other classes.
    """
    classes = images.train.classes
    if len(outputs(classes)) < 2:
        where = data.path or "these images"
        raise unlabelled(data, data.path, f"{where} has no labels of two classes or more")
    labels, held_out = images.train.all_labels().numpy(), images.held_out.labelled()
    if split := read_layout(data.path, data.follow_links).validation:
        _require_known(held_out, split, "the validation images", classes, outputs)
    labelled, chosen_on = np.flatnonzero(labels >= 0), held_out
    test_images = read_labelled(test, "the test", data, classes, outputs, log) if test else held_out
    if validation:
        chosen_on = read_labelled(validation, "the validation images", data, classes, outputs, log)
    elif not test:
        groups = together(images.train.select(labelled))
        kept, aside = hold_out(len(labelled), shares.validation, shares.seed, groups=groups)
        chosen_on = read_source(images.train.select(labelled[aside]), replace(data, limit=None), log)
        labelled = labelled[kept]
    if min(len(labelled), len(chosen_on), len(test_images)) == 0:
        cause = f"{len(labelled)} are learned from, {len(chosen_on)} are for choices, {len(test_images)} for the test"
        raise DataError("too few labelled images", cause=cause, fix="give more, or --test and --validation-data")
    labels = labels if outputs(classes) == classes else np.zeros_like(labels)  # several labels: drawn ignoring class
    chosen = few_labels(labels, labelled, shares.labels, shares.per_class, shares.seed)
    part = images.train.select(chosen)
    if images.bad_files is None:
        return LabelledSplits(TrainingData(part, chosen_on), test_images)
    return LabelledSplits(
        TrainingData(part, chosen_on, data.bad_files_record(part, log, images.bad_files.path)), test_images
    )


def known_first(images: AnyImages, known: tuple[str, ...]) -> AnyImages:
    """The images with the classes of an earlier run first, in its order, if they have all of them; new ones after."""
    classes = images.train.classes
    if not set(known) <= set(classes) or classes[: len(known)] == known:
        return images
    order = (*known, *(name for name in classes if name not in set(known)))
    train, held_out = (_in_order(part, order) for part in (images.train, images.held_out))
    return TrainingData(train, held_out, images.bad_files)


def _in_order(images: ImageDataset, classes: tuple[str, ...]) -> ImageDataset:
    if isinstance(images, InMemoryDataset):
        return renumbered(images, classes)
    return Renumbered(images, classes)


def read_labelled(
    path: str, role: str, data: Data, classes: tuple[str, ...], outputs: Outputs, log: Log
) -> InMemoryDataset:
    """All images of another DATA (of the embedded data set, its test images), with classes numbered as in `classes`.

    New combinations of the same labels are numbered after these.

    Raises:
        DataError: one of their classes needs an output that does not exist.
    """
    data = replace(data, path=path, limit=None)
    images = data.load(log).held_out if path == EMBEDDED else read_source(data.source_with_notes(path, log), data, log)
    if not images.classes:
        raise unlabelled(data, path, f"{path} cannot be {role}: it has no labels")
    images = images.labelled()
    _require_known(images, path, role, classes, outputs)
    return renumbered(images, classes)


def _require_known(images: ImageDataset, path: str, role: str, classes: tuple[str, ...], outputs: Outputs) -> None:
    """Raise a `DataError` if one of the labels of the images at `path` needs an output that does not exist."""
    if unknown := sorted(set(outputs(images.present_classes())) - set(outputs(classes))):
        cause = f"class {unknown[0]} is not among those to learn{but_a_twin(unknown[0], outputs(classes))}"
        raise DataError(f"{path} cannot be {role}", cause=cause, fix="use the same class folders")


class Measured(NamedTuple):
    """The scores of a network on some images.

    Attributes:
        scores: scalar scores, by name; one of them selects the weights.
        details: further results for each class, as JSON values.
    """

    scores: dict[str, float]
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Scores and details, as in result.json."""
        return self.scores | self.details


@dataclass(frozen=True)
class Best:
    """Evaluates the weights at each save, and keeps the best in best/. Scores are written to metrics.jsonl.

    Attributes:
        by: the score to maximise.
    """

    folder: RunFolder
    log: Log
    measure: Callable[[nn.Module], Measured]
    by: str

    def look(self, trainer: Trainer) -> None:
        """Evaluate the current weights; of equally good ones the last are kept.

        Without memory for that they are not measured, and kept only if no measured ones are.
        """
        best = self.folder.path / BEST
        remove_leftovers(best / FOLDER)
        for folder in (best / FOLDER).glob("step-*"):  # left over if the run was resumed from an older checkpoint
            if int(folder.name.removeprefix("step-")) > trainer.step:
                remove_folder(folder)
        network = copy.deepcopy(trainer.eval_model)
        network.eval()
        lines = [line for line in self.folder.read_metrics() if line.get("stage") == _STAGE]
        before = [line[f"{_STAGE}_{self.by}"] for line in lines]
        try:
            measured = self.measure(network).scores
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.log.say(f"warning: no {_STAGE} after step {trainer.step}: out of memory")
            if not before:
                write_checkpoint(best, trainer.step, trainer.eval_model.state_dict(), {})
            return
        named = {f"{_STAGE}_{name}": value for name, value in measured.items()}
        self.log.record(stage=_STAGE, step=trainer.step, **named)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self.log.say(f"{_STAGE} after step {trainer.step}: {shown}")
        if measured[self.by] >= max(before, default=0.0):
            write_checkpoint(best, trainer.step, trainer.eval_model.state_dict(), {})
