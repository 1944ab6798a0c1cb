"""Clones without their large files: every reader calls a pointer of Git LFS one, with the command that fetches."""

from pathlib import Path

import pytest
from PIL import Image

from smalti.core.errors import CheckpointError, DataError, SmaltiError
from smalti.core.files import write_folder
from smalti.core.log import Log
from smalti.core.stored import read_folder
from smalti.data.bad_files import BadFiles
from smalti.data.datasets.open import open_source
from smalti.data.load import Data
from smalti.data.workers.jobs import Bad
from smalti.weights.read import read_weights
from tests.data.tables import save_to_disk, table

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
MESSAGE = r"it is a Git LFS pointer, and the file itself was not fetched; fetch it with: git lfs pull"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(POINTER)
    return path


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_i07_images_that_are_pointers(tmp_path: Path, kind: str) -> None:
    for number in range(4):
        put(tmp_path / "images" / f"{number}.jpg")
    (tmp_path / "a.txt").write_text("".join(f"images/{number}.jpg\n" for number in range(4)))
    data = Data(path=str(tmp_path / ("images" if kind == "folder" else "a.txt")), side=8)
    with pytest.raises(DataError, match=rf"4 of 4 images cannot be read, first .*0\.jpg; {MESSAGE}"):
        data.load(Log())


def test_i07_streamed_images_that_are_pointers(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path / "0.jpg").parent), 3)
    with pytest.raises(DataError, match="it is a Git LFS pointer") as found:
        source[0]
    bad = BadFiles(2, source.name, Log(), max_fraction=0.5)
    bad.name = str
    with pytest.raises(DataError, match=r"cannot be read.*fetch it with: git lfs pull"):
        bad.add([Bad(0, found.value.cause, False), Bad(1, found.value.cause, False)], 2)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.arrow", "a.csv", "a.txt", "{0..1}.tar", "{0..1}.parquet"])
def test_i07_files_that_are_pointers(tmp_path: Path, name: str) -> None:
    for number in range(2):
        put(tmp_path / name.replace("{0..1}", str(number)))
    with pytest.raises(DataError, match=rf"cannot read .*; {MESSAGE}"):
        open_source(str(tmp_path / name), 1)


def test_i07_data_sets_of_pointers(tmp_path: Path) -> None:
    put(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    save_to_disk(tmp_path / "set", table([0, 1]))
    for path in (tmp_path / "set").glob("*.arrow"):
        put(path)
    for folder in ("hub", "set"):
        with pytest.raises(DataError, match=MESSAGE):
            open_source(str(tmp_path / folder), 1)


def test_i07_weights_that_are_pointers(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match="it looks like a Git LFS pointer, not like weights; fetch it with"):
            read_weights(str(put(tmp_path / name)))
    write_folder(tmp_path / "step", {"model.safetensors": b"x" * 1000})
    put(tmp_path / "step" / "model.safetensors")
    with pytest.raises(SmaltiError, match=rf"step is not all here; model\.safetensors: {MESSAGE}"):
        read_folder(tmp_path / "step")


def test_a_picture_is_no_pointer(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert open_source(str(tmp_path), 1)[0].image.shape == (4, 4, 1)
