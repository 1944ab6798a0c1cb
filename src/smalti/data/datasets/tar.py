"""Tar shards (the WebDataset layout) with random access by an index of offsets, built once and cached."""

import os
import re
from collections.abc import Sequence
from io import BufferedReader
from itertools import accumulate, product
from math import prod

import numpy as np

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.data_files import DataFiles, system_errors_named
from smalti.data.datasets.dataset import StoredDataset, place_in
from smalti.data.datasets.labels import NONE, Classes, resolve
from smalti.data.datasets.names import LeftOut
from smalti.data.datasets.tar_index import DAMAGED, ShardIndex, build_index, load_index, save_index
from smalti.data.datasets.tar_members import CUT_OFF

MAX_SHARDS = 100_000
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


class IndexedTars(StoredDataset):
    """Images in tar archives, by an index of offsets. Members are read in place, never extracted."""

    def __init__(self, places: DataFiles, indices: Sequence[ShardIndex], channels: int) -> None:
        self.places, self.channels, self._indices = places, channels, indices
        self._ends = list(accumulate(len(index.names) for index in indices))
        self.left_out, self.in_order = LeftOut(), places.in_order

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> bytes:
        shard, row = self._place(index)
        about = self._indices[shard]
        with system_errors_named(self.name(index)), self.places.open(shard) as file:
            file.seek(int(about.offsets[row]))
            data = file.read(int(about.sizes[row]))
        if len(data) < about.sizes[row]:
            raise DataError(f"cannot read {self.name(index)}", cause="the shard has become shorter")
        return data

    def name(self, index: int) -> str:
        shard, row = self._place(index)
        return f"{self.places.names[shard]}/{os.fsdecode(self._indices[shard].names[row])}"

    def length(self, index: int) -> int:
        shard, row = self._place(index)
        return int(self._indices[shard].sizes[row])

    def _place(self, index: int) -> tuple[int, int]:
        """The number of an image's shard, and its row in that shard's index."""
        return place_in(self._ends, range(len(self))[index])


class Shards(IndexedTars):
    """The images of tar shards of any origin; the index is built when they are first opened, and cached.

    Files whose names are equal up to the first dot are one sample: `0001.jpg` and `0001.cls`, which holds its label, or
    `0001.json`, whose `label` is it.
    """

    kind = "shards"

    def __init__(self, places: DataFiles, channels: int, log: Log | None = None, label_separator: str = "auto") -> None:
        super().__init__(places, _read_indices(places, log or Log()), channels)
        for name, index in zip(self.places.names, self._indices, strict=True):
            self.left_out.merge(index.left_out, f"{name}: ")
        if not len(self):
            if self.left_out.counts.keys() & {CUT_OFF, DAMAGED}:
                fix = "fetch or write it again"
                raise DataError(f"no whole image in {self.places.names[0]}", cause=f"{self.left_out}", fix=fix)
            found = self.left_out.suffix_line()
            cause = "no member has an image's extension" + (f"; there are {found}" if found else "")
            raise DataError(f"no images in {self.places.names[0]}", cause=cause, fix="check the path")
        self.no_labels = "no image has a .cls, or a .json with label, beside it"
        self.take_labels(_join_labels(self._indices, label_separator))

    def key(self, index: int) -> str:
        return self.places.relative(self.name(index))


def expand(pattern: str) -> list[str]:
    """Expand a brace pattern to paths: `{000..009}` is a range with that many digits, `{a,b}` a list.

    Raises:
        DataError: the pattern cannot be parsed, or gives more than 100 000 shards.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    if any("{" in part or "}" in part for part in parts[::2]):
        raise DataError(
            f"cannot read the pattern {pattern}", cause="a brace is alone", fix="as in shards-{000..009}.tar"
        )
    choices = [_choices(part, pattern) if place % 2 else [part] for place, part in enumerate(parts)]
    if prod(len(choice) for choice in choices) > MAX_SHARDS:
        raise DataError(f"more than {MAX_SHARDS} shards in {pattern}", fix="use fewer and larger ones")
    return ["".join(words) for words in product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    found = _RANGE.fullmatch(inside)
    if found is None:
        if "," not in inside:
            raise DataError(f"cannot read {{{inside}}} in {pattern}", fix="count as in {000..009}, or list as in {a,b}")
        return inside.split(",")
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < MAX_SHARDS:
        cause = f"it counts from {first} to {last}"
        raise DataError(f"cannot read {{{inside}}} in {pattern}", cause=cause, fix=f"at most {MAX_SHARDS}, upwards")
    return [str(number).zfill(len(found[1])) for number in range(first, last + 1)]


def _read_indices(places: DataFiles, log: Log) -> list[ShardIndex]:
    indices, megabytes = [], [done >> 20 for done in accumulate(places.sizes)]
    with log.progress("index MB", max(megabytes[-1], 1)) as bar:
        for number, done in enumerate(megabytes):
            indices.append(_read_index(places, number))
            bar.update(max(done, 1), os.path.basename(places.names[number]))
    return indices


def _read_index(places: DataFiles, number: int) -> ShardIndex:
    """The index of a shard, from the cache if the shard has not changed since."""
    name = places.names[number]
    with system_errors_named(name):
        version = places.version(number)
        index = load_index(version)
        if index is None:
            with BufferedReader(places.open(number)) as file:
                index = build_index(file, os.fstat(file.fileno()).st_size, name)
            save_index(version, index)
        return index


def _join_labels(indices: Sequence[ShardIndex], separator: str) -> Classes:
    """Merge the labels of all shards, each of which has its own `label_names`; see `resolve`."""
    table: dict[str, int] = {}
    parts = []
    for index in indices:
        places = [table.setdefault(name, len(table)) for name in index.label_names]
        parts.append(np.array([*places, NONE], np.int32)[index.labels])  # -1, no label, selects the last
    return resolve(np.concatenate(parts), tuple(table), separator)
