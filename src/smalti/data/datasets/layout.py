"""How a folder given as DATA is read: lone folders that are stepped through, and splits by the names of sub-folders.

Every verb asks here. Images are learned from the training split, measured on the validation split, and those of the
test split are touched by no verb that learns.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from smalti.core.errors import DataError
from smalti.data.datasets.folder import FollowLinks, IsImage
from smalti.data.datasets.lists import TABLE_SUFFIXES, TEXT_SUFFIXES
from smalti.data.datasets.names import has_array_suffix, has_image_suffix, is_system
from smalti.data.datasets.tar import expand
from smalti.data.datasets.zip_members import list_folder, zip_place

Split: TypeAlias = Literal["train", "validation", "test"]
SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of sub-folders, lists and Parquet files that are splits, in lower case; the same as on the Hugging Face hub."""
WORD = re.compile(r"[^\W\d_]+")
"""A word of a name, which may be that of a split."""
SHARD = re.compile(r"(?P<split>\w+(?:\.\w+)*)-(?P<number>\d{1,18})-(?P<rest>of-\d+(-\w+)?)")
"""The name of a file, without suffix, that is one of several of a split: train-00000-of-00002."""

_ROLES: dict[Split, str] = {"train": "is learned from", "validation": "is for choices", "test": "is kept for the end"}
_ORDER: tuple[Split, ...] = ("train", "validation", "test")
Listing: TypeAlias = Callable[[Path], tuple[list[str], list[str]]]
"""The names of the files and of the sub-folders of a folder, sorted."""

_STORES = frozenset({b".parquet", b".arrow", b".tar"})
_DEEPEST = 16


@dataclass(frozen=True)
class Layout:
    """How DATA is read.

    Attributes:
        root: the folder of the splits or classes: DATA, or the folder that its lone sub-folders lead to.
        splits: the folder or list of each split; empty if there are none.
        beside: sub-folders with images that belong to no split, and are not read.
        wrapped: whether `root` is another folder than DATA.
    """

    root: Path
    splits: Mapping[Split, Path] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    wrapped: bool = False

    @property
    def train(self) -> str:
        """DATA of the training images; a `DataError` if there are splits, and none for training."""
        if not self.splits:
            return str(self.root)
        if "train" not in self.splits:
            names = " and ".join(f"{path.name}/" for path in self.splits.values())
            fix = f"to learn from those all the same, give {next(iter(self.splits.values()))}"
            raise DataError(f"no images to learn from in {self.root}", cause=f"there is only {names}", fix=fix)
        return str(self.splits["train"])

    @property
    def validation(self) -> str:
        """DATA of the validation images; empty if there are none."""
        return str(self.splits.get("validation", ""))

    @property
    def test(self) -> str:
        """DATA of the test images; empty if there are none."""
        return str(self.splits.get("test", ""))

    @property
    def test_or_validation(self) -> str:
        """DATA of the images for testing: the test split, else the validation split; empty without splits."""
        return str(self.splits.get("test", self.splits.get("validation", "")))

    @property
    def selection(self) -> str:
        """DATA of the images for model selection: the validation split, unless it is the one for testing."""
        return self.validation if "test" in self.splits else ""

    def describe(self) -> str:
        """What is special of the folder, in one line; empty if nothing is."""
        parts = [f"{self.root}, the only folder with images"] if self.wrapped else []
        if self.splits:
            roles = _ROLES if "test" in self.splits else _ROLES | {"validation": "is what results are of"}
            parts.append(", ".join(f"{path.name} {roles[name]}" for name, path in self.splits.items()))
        parts += [f"{', '.join(self.beside)} beside these not read"] if self.beside else []
        return "; ".join(parts)


def read_layout(data: str, follow: FollowLinks = "inside") -> Layout:
    """How DATA is read. What is neither a folder nor a zip, or has no splits and lone folders, is read as it is.

    - Sub-folders `train` and `val`, `test` or another of `SPLIT_NAMES`, in any case, are splits. So are sub-folders
      that all have one of these words in their names (`train2017`, `val2017`), and a lone `train`.
    - A lone sub-folder in which further folders have the images is stepped through.
    - Without folders of images, lists of these names are splits: train.csv, test.csv; so are Parquet files, perhaps in
      a lone folder, as the Hugging Face hub has them: data/train-00000-of-00002.parquet.

    Raises:
        DataError: two folders are the same split.
        OSError: a folder cannot be listed.
    """
    place = Path(data).expanduser()
    archives = zip_place(data)
    if archives is None and (data == "embedded" or not place.is_dir()):
        return Layout(place)
    listed = partial(_entries, follow=follow) if archives is None else partial(list_folder, archives)
    root, is_image = place, has_image_suffix if _holds(place, listed) else has_array_suffix
    for _ in range(_DEEPEST):
        files, folders = listed(root)
        splits, beside = _folder_splits(root, folders, partial(_holds, listed=listed, is_image=is_image))
        if splits:
            return Layout(root, splits, beside, root != place)
        has_images = any(is_image(os.fsencode(name)) for name in files)
        within = (name for name in folders if _holds(root / name, listed, is_image))
        full = [] if has_images else list(islice(within, 2))
        if not (full or has_images):
            return Layout(root, _list_splits(root, files) or _table_splits(root, files), (), root != place)
        if len(full) != 1 or _holds(root / full[0], listed, is_image, deepest=0):
            inner = root / full[0] if len(full) == 1 else root
            tables = {} if has_images or inner == root else _table_splits(inner, listed(inner)[0])
            if tables:
                return Layout(inner, tables)
            break
        root /= full[0]
    return Layout(root, wrapped=root != place)


def _folder_splits(
    root: Path, folders: list[str], holds: Callable[[Path], bool]
) -> tuple[dict[Split, Path], tuple[str, ...]]:
    """The splits among the sub-folders, and the other ones that hold images; empty where they are no splits."""
    exact = {name: SPLIT_NAMES[name.casefold()] for name in folders if name.casefold() in SPLIT_NAMES}
    exact = {name: split for name, split in exact.items() if holds(root / name)}
    others = (name for name in folders if name not in exact and holds(root / name))
    if "train" in exact.values() and len(set(exact.values())) > 1:
        return _by_split(root, exact), tuple(others)
    if exact and next(others, None) is None:  # test/test is a test split in a folder of its own
        return ({} if SPLIT_NAMES.get(root.name.casefold()) in exact.values() else _by_split(root, exact)), ()
    worded = {name: found for name in folders if (found := split_in(name))}
    if any(holds(root / name) for name in folders if name not in worded):
        return {}, ()
    worded = {name: split for name, split in worded.items() if holds(root / name)}
    are_splits = "train" in worded.values() and 1 < len(worded) == len(set(worded.values()))
    return (_by_split(root, worded) if are_splits else {}), ()


def split_in(name: str) -> Split | None:
    """The split that one of the words of a name is, as of train2017 or seg_test."""
    found = [SPLIT_NAMES[word] for word in WORD.findall(name.casefold()) if word in SPLIT_NAMES]
    return found[0] if len(found) == 1 else None


def _list_splits(root: Path, files: list[str]) -> dict[Split, Path]:
    """The splits that are lists, as train.csv and test.csv."""
    lists = [name for name in files if Path(name).suffix.lower() in TABLE_SUFFIXES | TEXT_SUFFIXES]
    named = {name: SPLIT_NAMES[stem] for name in lists if (stem := Path(name).stem.casefold()) in SPLIT_NAMES}
    return _by_split(root, named) if "train" in named.values() else {}


def _table_splits(root: Path, files: list[str]) -> dict[Split, Path]:
    """The splits that are Parquet files, as train-00000-of-00002.parquet of the Hugging Face hub, or test.parquet."""
    stems = defaultdict[Split, list[str]](list)
    for name in files:
        stem, suffix = os.path.splitext(name)
        shard = SHARD.fullmatch(stem)
        split = SPLIT_NAMES.get((shard["split"] if shard else stem).casefold())
        if suffix.lower() == ".parquet" and split and not set(stem) & set(",{}"):
            stems[split].append(stem)
        elif os.fsencode(suffix.lower()) in _STORES or has_image_suffix(os.fsencode(name)):
            return {}  # of no split, so which files belong together is not known
    if "train" not in stems or len(stems) < 2:
        return {}
    return {split: root / f"{_pattern(stems[split])}.parquet" for split in _ORDER if split in stems}


def _pattern(stems: list[str]) -> str:
    """One name for several files, which `expand` takes apart."""
    shards = [SHARD.fullmatch(stem) for stem in stems]
    first, last = shards[0], shards[-1]
    if first is not None and last is not None and 0 < int(last["number"]) - int(first["number"]) == len(stems) - 1:
        pattern = f"{first['split']}-{{{first['number']}..{last['number']}}}-{first['rest']}"
        if expand(pattern) == stems:
            return pattern
    return stems[0] if len(stems) == 1 else f"{{{','.join(stems)}}}"


def _by_split(root: Path, named: Mapping[str, Split]) -> dict[Split, Path]:
    """The path of each split, in the order train, validation, test; a `DataError` if one has two."""
    by_split: dict[Split, Path] = {}
    for name, split in sorted(named.items(), key=lambda item: (_ORDER.index(item[1]), item[0])):
        if split in by_split:
            cause = f"{by_split[split].name} and {name} are both names of the {split} split"
            raise DataError(f"the splits of {root} are not clear", cause=cause, fix="keep one of them there")
        by_split[split] = root / name
    return by_split


def _entries(folder: Path, follow: FollowLinks) -> tuple[list[str], list[str]]:
    """The names of the files and of the sub-folders of a folder, sorted, without those made by the system."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_system(os.fsencode(entry.name)):
                is_folder = entry.is_dir(follow_symlinks=follow == "all")
                (folders if is_folder else files).append(entry.name)
    return sorted(files), sorted(folders)


def _holds(folder: Path, listed: Listing, is_image: IsImage = has_image_suffix, deepest: int = _DEEPEST) -> bool:
    """Whether a folder or one of its sub-folders, down to `deepest` levels, has images; it stops at the first."""
    files, folders = listed(folder)
    if any(is_image(name) or os.path.splitext(name)[1].lower() in _STORES for name in map(os.fsencode, files)):
        return True
    return deepest > 0 and any(_holds(folder / name, listed, is_image, deepest - 1) for name in folders)
