"""One suite for every kind of dataset: the same nine images, wherever they are, are the same dataset."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.datasets.open import open_source
from smalti.data.datasets.prepared import Prepared
from smalti.data.write_shards import write_shards
from tests.contracts import check_dataset
from tests.data.prepared import raw_settings
from tests.data.tables import png, save_to_disk, table, write
from tests.data.test_shards import put

COUNT, CLASSES = 9, ("cat", "dog", "emu")


def folder(root: Path) -> ImageDataset:
    for value in range(COUNT):
        path = root / "photos" / CLASSES[value % 3] / f"{value}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return open_source(str(root / "photos"), 1)


def listed(root: Path) -> ImageDataset:
    folder(root)
    rows = [f"photos/{CLASSES[value % 3]}/{value}.png,{CLASSES[value % 3]}" for value in range(COUNT)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return open_source(str(root / "list.csv"), 1)


def memory(root: Path) -> ImageDataset:
    values = torch.arange(COUNT, dtype=torch.uint8)
    return InMemoryDataset(values[:, None, None, None].expand(-1, 1, 4, 5), torch.arange(COUNT) % 3, CLASSES)


def tar(root: Path) -> ImageDataset:
    members = [((f"{n}.png", png(n)), (f"{n}.cls", CLASSES[n % 3].encode())) for n in range(COUNT)]
    for shard, first in enumerate((0, 4)):
        put(root / f"{shard}.tar", *[member for pair in members[first : first + 4 + shard] for member in pair])
    return open_source(f"{root}/{{0..1}}.tar", 1)


def zipped(root: Path) -> ImageDataset:
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for value in range(COUNT):
            archive.writestr(f"photos/{CLASSES[value % 3]}/{value}.png", png(value))
    return open_source(str(root / "photos.zip"), 1)


def prepared(root: Path) -> ImageDataset:
    source = listed(root)
    write_shards(source, root / "shards", raw_settings(source, channels=1), Log(), shard_bytes=5000)
    found = open_source(str(root / "shards"), 1)
    assert isinstance(found, Prepared)
    assert len(found.about.shards) > 1
    return found


def arrow(root: Path) -> ImageDataset:
    pytest.importorskip("pyarrow")
    save_to_disk(root / "set", table(range(5)), table(range(5, COUNT)))
    return open_source(str(root / "set"), 1)


def parquet(root: Path) -> ImageDataset:
    pytest.importorskip("pyarrow")
    write(root / "0.parquet", table(range(COUNT)), 4)
    return open_source(str(root / "0.parquet"), 1)


def subset(root: Path) -> ImageDataset:
    twice = folder(root)
    order = sorted(range(COUNT), key=lambda index: int(twice[index].image[0, 0, 0]))
    return twice.select(np.array(order))


@pytest.mark.parametrize("kind", [folder, listed, memory, tar, zipped, prepared, arrow, parquet, subset])
def test_every_dataset_keeps_the_contract(
    kind: Callable[[Path], ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    dataset = kind(tmp_path)
    check_dataset(dataset)
    assert (len(dataset), dataset.channels, dataset.classes) == (COUNT, 1, CLASSES)
    shown = {int(dataset[index].image[0, 0, 0]): CLASSES[dataset.label(index)] for index in range(COUNT)}
    assert shown == {value: CLASSES[value % 3] for value in range(COUNT)}
    assert all(dataset[index].image.shape == (4, 5, 1) for index in range(COUNT))
    assert (dataset.pixels is None) == (kind is not memory)
