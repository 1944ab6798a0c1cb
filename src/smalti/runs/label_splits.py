"""The labelled images of a run: to learn from, to choose on, and to be judged on."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.datasets.open import EMBEDDED, open_source
from smalti.data.load import AnyImages, Data, TrainingData, read_source
from smalti.data.splits import few_labels, put_aside

Outputs: TypeAlias = Callable[[tuple[str, ...]], tuple[str, ...]]
Given: TypeAlias = AnyImages
"""Images whose classes are those of whole images, or of pixels."""


class Labelled(NamedTuple):
    """No image is in two of the three.

    Attributes:
        train: what the network learns from, with what is held out of it for choices in `held_out`.
        test: looked at once, at the end.
    """

    train: Given
    test: ImageDataset

    @property
    def validation(self) -> ImageDataset:
        """What choices are made on."""
        return self.train.held_out

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class numbers."""
        return self.train.train.classes


class Shares(NamedTuple):
    """How labelled images are divided.

    Attributes:
        validation: share of the images to learn from that is put aside.
        labels, per_class: as of `few_labels`.
    """

    validation: float
    labels: float
    per_class: int | None
    seed: int


def divide(
    images: Given,
    data: Data,
    test: str,
    shares: Shares,
    log: Log,
    outputs: Outputs = tuple,
    validation: str = "",
) -> Labelled:
    """Put validation images aside, then keep as many labels as are asked for.

    Args:
        images: of `data`.
        test: DATA of other images to be judged on. What `data` holds out is then for validation, and nothing is put
            aside beside it; else what `data` holds out is the test.
        validation: DATA of other images to make choices on; nothing is put aside for that then.
        outputs: what is to be learned, of the classes that a source names; all of them, or the labels in their names.

    Raises:
        DataError: there are no labels, or images that are given apart show other classes.
    """
    classes = images.train.classes
    if len(outputs(classes)) < 2:
        where = data.path or "these images"
        raise DataError(f"{where} has no labels of two classes or more", fix="put images into one folder a class")
    learn, chosen_on = np.arange(len(images.train)), images.held_out
    judged = read_labelled(test, "the test", data, classes, outputs, log) if test else images.held_out
    if validation:
        chosen_on = read_labelled(validation, "the validation images", data, classes, outputs, log)
    elif not test:
        learn, aside = put_aside(len(learn), shares.validation, shares.seed)
        chosen_on = read_source(images.train.select(aside), replace(data, limit=None), log)
    labels = images.train.all_labels().numpy()
    labels = labels if outputs(classes) == classes else np.zeros_like(labels)  # several labels: drawn from all alike
    chosen = few_labels(labels, learn, shares.labels, shares.per_class, shares.seed)
    part = images.train.select(chosen)
    if images.bad_files is None:
        return Labelled(TrainingData(part, chosen_on), judged)
    return Labelled(TrainingData(part, chosen_on, data.noted(part, log, images.bad_files.path)), judged)


def read_labelled(
    path: str, role: str, data: Data, classes: tuple[str, ...], outputs: Outputs, log: Log
) -> InMemoryDataset:
    """All images of another DATA, of the embedded ones those for the test; their classes numbered as in `classes`.

    Other combinations of the same labels come after these.

    Raises:
        DataError: what one of their classes stands for is not there.
    """
    data = replace(data, path=path, limit=None)
    if path == EMBEDDED:
        images = data.load(log).held_out
    else:
        images = read_source(open_source(path, data.channels, log, data.follow_links), data, log)
    unknown = sorted(set(outputs(images.classes)) - set(outputs(classes)))
    if unknown or not images.classes:
        cause = f"class {unknown[0]} is not among those to learn" if unknown else "it has no labels"
        raise DataError(f"{path} cannot be {role}", cause=cause, fix="use the same class folders")
    every = classes + tuple(name for name in images.classes if name not in classes)
    place = torch.tensor([every.index(name) for name in images.classes])
    return InMemoryDataset(images.images, place[images.labels], every)
