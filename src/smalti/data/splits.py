"""Data sets that come with test images of their own."""

from pathlib import Path

import torch

from smalti.core.config import require
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.core.rng import permutation
from smalti.data.datasets.memory import InMemoryDataset
from smalti.data.datasets.open import EMBEDDED, open_source
from smalti.data.load import Data, InMemoryData, TrainingData, read_source


def official_splits(path: str, test: str) -> tuple[str, str]:
    """Where the training images are and where the official test images; the second is empty where there are none.

    A folder with the folders train/ and test/ in it has both; else `test` is DATA of its own.

    Raises:
        UsageError: the embedded images have theirs already.
    """
    require(
        not test or path != EMBEDDED, f"test images {test}, and the embedded ones have their own", "leave --test out"
    )
    folder = Path(path).expanduser()
    if not test and path != EMBEDDED and (folder / "train").is_dir() and (folder / "test").is_dir():
        return str(folder / "train"), str(folder / "test")
    return path, test


def load_splits(data: Data, train: str, test: str, log: Log) -> InMemoryData:
    """Both parts in memory, with the same numbers for the same classes.

    Raises:
        DataError: as of `Data.load`, or the test images have no labels or classes of their own.
    """
    log.say(f"training images from {train}, test images from {test}")
    learnt, judged = (
        read_source(open_source(path, data.channels, log, data.follow_links), data, log) for path in (train, test)
    )
    return TrainingData(learnt, _like(judged.select(permutation(0, 0, len(judged))), learnt.classes, test))


def _like(test: InMemoryDataset, classes: tuple[str, ...], where: str) -> InMemoryDataset:
    """The test images with the class numbers of the training images, by name."""
    if not classes:
        return test
    if not test.classes:
        raise DataError(f"no labels in {where}", cause="the training images have some", fix="check --test")
    place = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in test.classes if name not in place]:
        more = f", first '{unknown[0]}'"
        raise DataError(
            f"{len(unknown)} classes of {where} are not among the training images{more}", fix="check --test"
        )
    numbers = torch.tensor([place[name] for name in test.classes])
    return InMemoryDataset(test.images, numbers[test.labels], classes)
