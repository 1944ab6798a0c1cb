"""`smalti split`: divide a data set once, and write a list for each part. No image is copied."""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import require, setting
from smalti.core.errors import DataError, UsageError
from smalti.core.files import make_folder, require_place, write_bytes
from smalti.core.log import Log, printable
from smalti.data.datasets.folder import Files
from smalti.data.datasets.labels import resolve
from smalti.data.datasets.open import ReadOptions, open_with_notes
from smalti.data.duplicates import content_digest
from smalti.data.groups import GROUP, group_values, require_group
from smalti.data.reading import map_images
from smalti.data.splits import joined_groups, partition


@dataclass(frozen=True)
class Split(ReadOptions):
    """Which images, and how they are divided."""

    data: str
    """A folder of images or a list (.txt .lst .csv .tsv)."""
    out: str = setting("", "the folder for train.csv, test.csv and validation.csv; it is DATA for every verb")
    test: float = setting(0.2, "share of the images for the test")
    validation: float = setting(0.0, "share of the images for validation; 0: none")
    group: str = setting("", GROUP)
    seed: int = setting(0, "of the random choice")

    def __post_init__(self) -> None:
        require(bool(self.out), "no folder for the lists", "use --out FOLDER")
        require(0 < self.test < 1, f"a test share of {self.test}", "choose one between 0 and 1")
        require(0 <= self.validation < 1, f"a validation share of {self.validation}", "choose one in [0, 1)")
        require(self.test + self.validation < 1, "nothing is left to learn from", "choose smaller shares")
        require_group(self.group)
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")

    @property
    def shares(self) -> dict[str, float]:
        """The wanted share of each part."""
        learned = {"train": 1 - self.test - self.validation}
        return learned | ({"validation": self.validation} if self.validation else {}) | {"test": self.test}


def main(config: Split) -> dict[str, Any]:
    """Write the lists.

    Raises:
        DataError: DATA is not of files, has no such column, or has too few groups; or an image cannot be read.
        UsageError: there are lists in the folder already.
    """
    log, out = Log(), Path(config.out).expanduser()
    lists = {name: out / f"{name}.csv" for name in config.shares}
    require_place(out)
    if there := [path for path in lists.values() if path.exists()]:
        raise UsageError(f"{there[0]} exists already", fix="choose another --out, or remove it")
    source = open_with_notes(config.data, 3, log, config)
    if not isinstance(source, Files):
        cause = f"the lists name files, and DATA is of the kind {source.kind}"
        raise DataError(f"cannot split {config.data}", cause=cause, fix="give a folder of images, or a list")
    wanted = [group_values(source, config.group)] if config.group else []
    digests = _digests(source, log)
    groups = joined_groups([tuple(row) for row in digests.tolist()], *wanted)
    labels = source.all_labels().numpy()
    part = partition(labels, groups, digests[:, 0], config.shares, config.seed)
    counts = dict(zip(config.shares, np.bincount(part, minlength=len(lists)).tolist(), strict=True))
    if empty := [name for name, count in counts.items() if not count]:
        cause = f"{len(np.unique(groups))} groups of images that stay together are too few for these shares"
        raise DataError(f"no images for {empty[0]}", cause=cause, fix="choose larger shares, or other groups")
    make_folder(out)
    for number, path in enumerate(lists.values()):
        write_bytes(path, _list(source, np.flatnonzero(part == number), out))
    together = len(source) - len(np.unique(digests, axis=0))
    result = {"out": config.out, "images": len(source), "classes": len(source.classes), "parts": counts}
    result |= {"copies": together, "groups": len(np.unique(groups))}
    print(describe(result) + _as_one_name(source.classes))
    return result


def _as_one_name(classes: tuple[str, ...]) -> str:
    """The flag with which a list has these classes again, where some would be read as several labels: `hot dog`."""
    found = resolve(np.arange(len(classes), dtype=np.int32), classes).names
    return "" if set(classes) <= set(found) else " --data.label-separator none"


def _digests(source: Files, log: Log) -> NDArray[np.uint64]:
    """Two numbers for each image, equal for equal files; (n, 2)."""
    rows = np.empty((len(source), 2), np.uint64)
    with map_images(
        lambda place: content_digest(source.read(place)), range(len(source)), log, "look for copies"
    ) as found:
        for place, result in found:
            if isinstance(result, DataError):
                raise result
            rows[place] = result
    return rows


def _list(source: Files, positions: NDArray[np.int64], out: Path) -> bytes:
    """A list of some images, with their labels if they have any; paths are relative to the folder of the list."""
    text, folder = io.StringIO(), os.path.realpath(out)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label"] if source.classes else ["path"])
    for place in positions.tolist():
        path, number = os.path.relpath(os.path.abspath(source.path(place)), folder), source.label(place)
        label = source.classes[number] if number >= 0 else ""
        writer.writerow([path, label] if source.classes else [path])
    return text.getvalue().encode("utf-8", "surrogateescape")


def describe(result: dict[str, Any]) -> str:
    """The counts, and how to go on."""
    parts = ", ".join(f"{name}.csv {count}" for name, count in result["parts"].items())
    out = printable(result["out"])
    together = f"; {result['copies']} copies of other images are where these are" if result["copies"] else ""
    return f"{out}: {parts} images{together}\nnext: smalti finetune tiny --data {out} --out RUN"
