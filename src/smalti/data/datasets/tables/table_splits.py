"""Which Parquet files of a folder to read: one data set, and of its splits the one to train on."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from smalti.core.errors import DataError
from smalti.data.datasets.listing import FollowLinks, is_system

TRAIN = "train"
_KEYWORDS = {TRAIN: TRAIN, "training": TRAIN} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_KEYWORDS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d+-of-\d+")
_WORD = re.compile(r"[^\W\d_]+")


def parquet_files(root: Path, follow: FollowLinks = "inside") -> tuple[list[Path], tuple[str, ...]]:
    """The Parquet files to read below a folder, sorted, and what is to be said about them; none where there are none.

    The layout is that of the Hugging Face hub: splits are named by files (`data/train-00000-of-00002.parquet`) or
    folders (`default/train/0000.parquet`). Files of no split are one data set.

    Raises:
        DataError: several data sets, or several splits of which none is for training.
    """
    files, outside = _find(root, follow)
    if not files:
        if outside:
            fix = f"{outside} links lead out of the folder: follow them with --data.follow-links all"
            raise DataError(f"no images in {root}", cause="no Parquet file lies in the folder itself", fix=fix)
        return [], ()
    groups: dict[str, list[Path]] = defaultdict(list)
    configs: dict[str, set[str]] = defaultdict(set)
    for path in files:
        split, config = split_of(path.relative_to(root))
        groups[split].append(path)
        configs[split].add(config)
    split, notes = choose_split({name: str(paths[0]) for name, paths in groups.items()}, str(root))
    if split and len(configs[split]) > 1:
        found = ", ".join(repr(name or ".") for name in sorted(configs[split])[:8])
        raise DataError(f"several data sets in {root}", cause=f"there are {found}", fix="give the folder of one")
    return groups[split], notes


def choose_split(splits: Mapping[str, str], where: str) -> tuple[str, tuple[str, ...]]:
    """Of the splits of a data set, each with a place where it is: the one to train on, and a note about the others.

    Raises:
        DataError: there are several and none is called `train`, or none at all.
    """
    names = ", ".join(name or "files of no split" for name in sorted(splits)[:8])
    if TRAIN in splits and len(splits) > 1:
        others = ", ".join(name or "files of no split" for name in sorted(splits)[:8] if name != TRAIN)
        return TRAIN, (f"the split 'train' is read; there are also: {others}",)
    if len(splits) == 1:
        return next(iter(splits)), ()
    if not splits:
        raise DataError(f"no images in {where}", cause="it names no splits", fix="check --data")
    fix = f"give one of them, as in --data {splits[max(splits)]}"
    raise DataError(f"several splits in {where}", cause=f"none is called 'train'; there are: {names}", fix=fix)


def split_of(path: Path) -> tuple[str, str]:
    """The split that a relative path names, as `train`, and the folder of its data set; both may be empty."""
    if shard := _SHARD.fullmatch(path.stem):
        return _KEYWORDS.get(shard[1].lower(), shard[1]), path.parent.as_posix()
    for place in range(len(path.parts) - 1, -1, -1):
        words = _WORD.findall(path.stem.lower() if place == len(path.parts) - 1 else path.parts[place].lower())
        if found := [_KEYWORDS[word] for word in words if word in _KEYWORDS]:
            return found[0], Path(*path.parts[:place]).as_posix()
    return "", ""


def _find(root: Path, follow: FollowLinks) -> tuple[list[Path], int]:
    """All Parquet files, and how many were left out because they are links that lead out of the folder."""
    found, outside, top = [], 0, os.path.realpath(root)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_system(os.fsencode(name)))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() != ".parquet" or is_system(os.fsencode(name)) or not path.is_file():
                continue
            inside = os.path.realpath(path).startswith(os.path.join(top, ""))
            outside += not inside and follow != "all"
            if inside or follow == "all":
                found.append(path)
    return sorted(found), outside
