"""Zip archives as DATA: the folder that was packed, read in place; hostile and damaged ones."""

import io
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.datasets.layout import read_layout
from smalti.data.datasets.open import open_source
from smalti.data.load import official_splits
from tests.contracts import check_dataset


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


PHOTOS = {f"{name}/{n}.png": png(10 * n + len(name)) for name in ("cat", "ferret") for n in range(3)}
SPLITS = {f"{split}/{name}": data for split in ("train", "valid", "test") for name, data in PHOTOS.items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_as_the_folder_that_was_packed(method: int, tmp_path: Path) -> None:
    extra = {"cat.png/x.jpg": png(1), ".hidden/a.png": png(1), "__MACOSX/cat/._0.png": b"x", "cat/readme.txt": b"x"}
    path = packed(tmp_path / "photos.zip", PHOTOS | extra, method)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "photos")
    ours, folder = open_source(str(path), 1), open_source(str(tmp_path / "photos"), 1)
    check_dataset(ours)
    assert [ours.key(n) for n in range(len(ours))] == [folder.key(n) for n in range(len(folder))]
    assert (ours.classes, ours.fingerprint()) == (folder.classes, folder.fingerprint())
    assert ours.left_out.counts["no image's extension"] == 1
    assert all(ours.read(n) == folder.read(n) for n in range(len(ours)))


def test_splits_wrappers_and_inner_folders_are_those_of_a_folder(tmp_path: Path) -> None:
    path = str(packed(tmp_path / "leaves.ZIP", {f"leaves/{name}": data for name, data in SPLITS.items()}))
    layout = read_layout(path)
    assert {name: str(split) for name, split in layout.splits.items()} == {
        "train": f"{path}/leaves/train",
        "validation": f"{path}/leaves/valid",
        "test": f"{path}/leaves/test",
    }
    assert official_splits(path, "") == (f"{path}/leaves/train", f"{path}/leaves/test")
    source = open_source(path, 1)
    assert (len(source), source.classes) == (6, ("cat", "ferret"))
    assert "splits: " in source.notes[0]
    assert len(open_source(path, 1, part="all")) == 18
    assert open_source(f"{path}/leaves/test/cat", 1).classes == ()
    with pytest.raises(DataError, match=r"no images in .*leaves.ZIP/nothing"):
        open_source(f"{path}/nothing", 1)


def test_several_archives_are_one_folder(tmp_path: Path) -> None:
    names = sorted(PHOTOS)
    packed(tmp_path / "p-0.zip", {name: PHOTOS[name] for name in names[:4]})
    packed(tmp_path / "p-1.zip", {name: PHOTOS[name] for name in names[3:]})
    source = open_source(f"{tmp_path}/p-{{0..1}}.zip", 1)
    assert [source.key(n) for n in range(len(source))] == names
    assert source.left_out.counts["name used before"] == 1


def test_threads_read_at_once_and_arrays_are_images_without_others(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 4, 5), np.uint16))
    source = open_source(str(packed(tmp_path / "a.zip", PHOTOS | {"cat/a.npy": file.getvalue()})), 1)
    assert len(source) == 6
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(source.read, list(range(6)) * 20)) == [source.read(n) for n in range(6)] * 20
    assert open_source(str(packed(tmp_path / "b.zip", {"a.npy": file.getvalue()})), 5)[0].image.shape == (4, 4, 5)


@pytest.mark.parametrize(
    "name", ["/etc/a.png", "../a.png", "x/../../a.png", "C:/a.png", "\\\\host\\a.png", "..\\a.png"]
)
def test_paths_that_lead_out_are_left_out(name: str, tmp_path: Path) -> None:
    source = open_source(str(packed(tmp_path / "a.zip", {name: png(1), "b\\ok.png": png(2)})), 1)
    assert (len(source), source.key(0)) == (1, "b/ok.png")
    assert source.left_out.counts["path out of the archive"] == 1


def test_names_twice_links_and_other_methods_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png(2))
        link = zipfile.ZipInfo("b.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("c.png", png(3), zipfile.ZIP_LZMA)
    source = open_source(str(tmp_path / "a.zip"), 1)
    assert (len(source), source.read(0)) == (1, png(1))
    assert sorted(source.left_out.counts) == [
        "name used before",
        "not a regular file",
        "packed by a method that is not read (stored and deflate are)",
    ]


def flagged(path: Path) -> Path:
    """The archive with the mark of encryption on its first member."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1
    path.write_bytes(data)
    return path


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = flagged(packed(tmp_path / "a.zip", {"a.png": png(1)}))
    with pytest.raises(DataError, match=r"a.zip is encrypted; a.png needs a password; unpack it into a folder"):
        open_source(str(path), 1)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"a.png": bytes(100_000), "b.png": bytes(100_000)})
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    struct.pack_into("<I", data, second + 42, 0)
    path.write_bytes(data)
    with pytest.raises(DataError, match="its members overlap"):
        open_source(str(path), 1)


def test_a_member_never_unpacks_to_more_than_it_claims(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"a.png": bytes(50 << 20), "b.png": png(1)})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1000)
    path.write_bytes(data)
    source = open_source(str(path), 1)
    with pytest.raises(DataError, match=r"cannot read .*a.zip/a.png; damaged: its bytes are not those"):
        source.read(0)
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1 << 30)
    (tmp_path / "c.zip").write_bytes(data)
    assert open_source(str(tmp_path / "c.zip"), 1).left_out.counts["too large"] == 1


def test_damage_is_a_bad_image_and_a_cut_archive_is_none(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", PHOTOS, zipfile.ZIP_STORED)
    data = path.read_bytes()
    at = data.index(b"IDAT") + 6
    (tmp_path / "b.zip").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    source = open_source(str(tmp_path / "b.zip"), 1)
    with pytest.raises(DataError, match="check sum"):
        source.read(0)
    assert source.read(1) == PHOTOS["cat/1.png"]
    for length in (0, 10, len(data) // 2, len(data) - 5):
        (tmp_path / f"{length}.zip").write_bytes(data[:length])
        with pytest.raises(DataError, match=r"is no zip archive"):
            open_source(str(tmp_path / f"{length}.zip"), 1)
