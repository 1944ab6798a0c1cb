"""The images that a list names, wherever they lie now: below its folder or another, with or without their extension."""

import os
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.folder import Files, count_up, twin_notes, walk
from smalti.data.datasets.lists import TABLE_SUFFIXES, as_text, read_column, read_list
from smalti.data.datasets.names import PackedNames, PackedNamesBuilder, has_image_suffix

_SAMPLE = 64
"""So many paths are tried; if none of them leads to a file, the files are looked for by name."""


class FileList(Files):
    """The images that a list or CSV file names, in its order, below `root`; empty: the folder of the list."""

    kind = "list"

    def __init__(
        self, path: Path, channels: int, root: str = "", label_separator: str = "auto", log: Log | None = None
    ) -> None:
        listed, self.table = read_list(path), path
        place = Path(root).expanduser() if root else path.parent
        if not place.is_dir():
            raise DataError(f"no folder {place}", cause="it is the root of the images of a list", fix="check the path")
        names, notes = _located(listed.names, place, path, log or Log())
        super().__init__(place, names, channels)
        self.notes = (*listed.notes, *notes)
        self.no_labels = listed.no_labels
        self.take_labels(listed.labels.build(label_separator))
        self.notes += tuple(twin_notes(self.classes))

    def column(self, name: str) -> list[str | None]:
        if self.table.suffix.lower() not in TABLE_SUFFIXES:
            fix = "give a table with this column as DATA, or a regular expression for paths"
            raise DataError(f"no column {name}", cause=f"{self.table} is no table (.csv .tsv)", fix=fix)
        return [cell or None for cell in read_column(self.table, name)]


def _located(names: PackedNames, root: Path, path: Path, log: Log) -> tuple[PackedNames, tuple[str, ...]]:
    """The names as they are if some lead to a file, else those of the files below `root` that they are most like."""
    some = np.unique(np.linspace(0, len(names) - 1, _SAMPLE).astype(np.int64))
    top = os.fsencode(root)
    if any(os.path.lexists(os.path.join(top, names[position])) for position in some.tolist()):
        return names, ()
    files, found, count, example = _Files(root, log), PackedNamesBuilder(), 0, ""
    for position in range(len(names)):
        name = names[position]
        file = files.like(os.fsdecode(name))
        if file is not None and not count:
            example = f"'{as_text(os.fsdecode(name))}' is {file}"
        count += file is not None
        found.add(name if file is None else os.fsencode(file))
    if count:
        what = f"no path of {path.name} is a file as it is written; {count} of {len(names)} are found by name"
        return found.build(), (f"{what}: {example}, below {root}",)
    there = f"{files.count} images there, such as {files.first}" if files.count else "no images there"
    raise DataError(
        f"none of the {len(names)} images of {path} is there, first '{as_text(os.fsdecode(names[0]))}'",
        cause=f"looked for in {root}, also with other extensions, separators and encodings: {there}",
        fix="say in which folder they lie with --data.root FOLDER",
    )


class _Files:
    """The images below a folder, to be found by the end of a path that was written elsewhere.

    Letter case, Unicode form and extension may differ; folders count as far as they agree.
    """

    def __init__(self, root: Path, log: Log) -> None:
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self.count, self.first = 0, ""
        with count_up(log, f"look for images below {root}") as tick:
            for name, left_out in walk(root):
                if not left_out:
                    text = os.fsdecode(name)
                    self.by_stem[_folded(_stem(PurePosixPath(text).name))].append(text)
                    self.first = self.first or text
                    self.count += 1
                    tick(self.count)

    def like(self, name: str) -> str | None:
        """The one file whose path ends most like `name`; None if there is none, or several as good."""
        parts = [part for part in as_text(name).strip().strip("'\"").replace("\\", "/").split("/") if part]
        if not parts:
            return None
        scored = [(_agreement(parts, file), file) for file in self.by_stem.get(_folded(_stem(parts[-1])), ())]
        best = max(scored, default=None)
        return None if best is None or [score for score, _ in scored].count(best[0]) > 1 else best[1]


def _agreement(parts: list[str], file: str) -> tuple[int, bool]:
    """How many folders before the file agree, from the last; and whether the names of both files are the same."""
    folders, count = PurePosixPath(file).parts, 0
    for ours, theirs in zip(reversed(parts[:-1]), reversed(folders[:-1]), strict=False):
        if _folded(ours) != _folded(theirs):
            break
        count += 1
    return count, parts[-1] == folders[-1]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if has_image_suffix(os.fsencode(name)) else name


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
