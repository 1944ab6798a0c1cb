"""Folders and lists of images, images in memory, and the images inside the package."""

import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import DataError, UsageError
from smalti.data.datasets.dataset import InMemoryDataset, embedded, embedded_photographs
from smalti.data.datasets.file_list import FileList
from smalti.data.datasets.folder import Files, Folder
from smalti.data.datasets.lists import read_list
from smalti.data.decode import decode
from tests.contracts import check_dataset
from tests.data.test_listing import peak_of


def put(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4), value).save(path)


def keys(folder: Files) -> list[str]:
    return [folder[i].key for i in range(len(folder))]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for value, name in enumerate(["b.png", "a.jpg", "C.PNG"]):
        put(tmp_path / name, value)
    folder = Folder(tmp_path, 1)
    check_dataset(folder)
    assert keys(folder) == ["C.PNG", "a.jpg", "b.png"]
    assert folder.classes == ()
    assert [folder[i].label for i in range(3)] == [-1, -1, -1]
    assert folder[2].image.tolist() == np.zeros((4, 5, 1)).tolist()


def test_class_folders_are_the_labels_in_sorted_order(tmp_path: Path) -> None:
    for name in ["dog/1.png", "cat/2.png", "dog/0.png", "bird/deep/er/3.png"]:
        put(tmp_path / name)
    folder = Folder(tmp_path, 3)
    check_dataset(folder)
    assert folder.classes == ("bird", "cat", "dog")
    assert [(folder[i].key, folder[i].label) for i in range(4)] == [
        ("bird/deep/er/3.png", 0),
        ("cat/2.png", 1),
        ("dog/0.png", 2),
        ("dog/1.png", 2),
    ]


def test_one_image_beside_the_folders_means_no_classes(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png")
    put(tmp_path / "2.png")
    folder = Folder(tmp_path, 1)
    assert len(folder) == 2
    assert folder.classes == ()


def test_hidden_and_foreign_files_are_left_out(tmp_path: Path) -> None:
    for name in ["a.png", ".hidden.png", ".cache/b.png", "._a.png"]:
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert keys(Folder(tmp_path, 1)) == ["a.png"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "linked.png").symlink_to(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "self").symlink_to("self")
    (tmp_path / "images" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert keys(Folder(tmp_path / "images", 1)) == ["a.png", "linked.png"]


def test_a_root_that_is_itself_a_link_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert len(Folder(tmp_path / "link", 1)) == 1


def test_h05_h06_strange_names_are_read(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "ä.png",
        "a\u0308.png",
        "new\nline.png",
        "-x.png",
        "日本.png",
        "'\".png",
        "\u202egnp.png",
        "\udcff.png",
    ]
    for name in names:
        put(tmp_path / name)
    folder = Folder(tmp_path, 1)
    check_dataset(folder)
    assert sorted(keys(folder)) == sorted(names)
    assert json.loads(json.dumps(keys(folder))) == keys(folder)


def test_h01_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    message = (
        r"no images in .*; no file there has an image's extension; found {}; looked for \.avif .*\.webp; check the path"
    )
    with pytest.raises(DataError, match=message.format("nothing at all")):
        Folder(tmp_path, 1)
    for name in ("1.txt", "2.txt", "3.TXT", "README"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message.format(r"3 \.txt, 1 without extension")):
        Folder(tmp_path, 1)


def test_a_folder_of_shards_or_of_links_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "shards-000.tar").touch()
    with pytest.raises(
        DataError, match=r"found 1 \.tar; .*give tar shards by a pattern, as in --data '.*\{000\.\.009\}"
    ):
        Folder(tmp_path, 1)
    put(tmp_path / "outside" / "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "outside" / "a.png")
    message = "1 links lead out of the folder: follow them with --data.follow-links all"
    with pytest.raises(DataError, match=message):
        Folder(tmp_path / "root", 1)
    assert keys(Folder(tmp_path / "root", 1, follow="all")) == ["a.png"]


def test_h07_class_names_that_are_easily_confused_are_kept_apart_and_named(tmp_path: Path) -> None:
    for name in ["Cat/1.png", "cat/2.png", "a/cat/3.png", "b/cat/4.png"]:
        put(tmp_path / name)
    folder = Folder(tmp_path, 1)
    assert folder.classes == ("Cat", "a", "b", "cat")
    assert folder.notes == ("classes 'Cat', 'cat' differ in case or Unicode form only, and are taken as different",)


def test_h08_classes_without_images_are_named(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / ".hidden").mkdir()
    folder = Folder(tmp_path, 1)
    assert folder.classes == ("cat",)
    assert folder.notes == ("1 class folders have no images, first dog",)


def test_the_bytes_of_a_file_are_read_as_they_are(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    folder = Folder(tmp_path, 1)
    assert folder.read(0) == (tmp_path / "a.png").read_bytes()
    assert folder.name(0) == str(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.png; No such file"):
        folder.read(0)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(path: Path) -> list[tuple[str, str | None]]:
    """(path, class) of every line."""
    listed = read_list(path)
    numbers, classes, _ = listed.labels.build()
    names = [os.fsdecode(listed.names[position]) for position in range(len(listed.names))]
    return [(name, classes[number] if number >= 0 else None) for name, number in zip(names, numbers, strict=True)]


def test_a_list_is_a_source_relative_to_itself(tmp_path: Path) -> None:
    for value, name in enumerate(["b.png", "deep/a b.png", "other/c.png"]):
        put(tmp_path / "images" / name, value)
    outside = tmp_path / "images" / "other" / "c.png"
    source = FileList(write(tmp_path / "images" / "list.txt", f"b.png\n\ndeep/a b.png\n{outside}\n"), 1)
    check_dataset(source)
    assert [source[i].image[0, 0, 0] for i in range(3)] == [0, 1, 2]
    assert source.name(1) == str(tmp_path / "images" / "deep" / "a b.png")
    assert source.shrunk(0, 2).image.shape[:2] == (2, 2)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.txt", "1.png cat\n2.png\tdog\n", [("1.png", "cat"), ("2.png", "dog")]),
        ("a.lst", "x 1.png\r\n2.png 3\r\n", [("x 1.png", None), ("2.png", "3")]),
        ("a.lst", "x 1.png 0\r\n2.png 1\r\n", [("x 1.png", "0"), ("2.png", "1")]),
        ("a.csv", "\ufefffilename,label\r\n1.png,cat\r\n\r\n2.png,dog\r\n", [("1.png", "cat"), ("2.png", "dog")]),
        ("a.csv", "id;image;class\n7;1.png;cat\n", [("1.png", "cat")]),
        ("a.CSV", 'path,width\n"a,""b"".png",5\n', [('a,"b".png', None)]),
        ("a.csv", "1.png,0\n2.png,1\n", [("1.png", "0"), ("2.png", "1")]),
        ("a.tsv", "label\tpath\n=cmd()\t1.png\n", [("1.png", "=cmd()")]),
        ("a.csv", "path,label\n1.png,cat\n".encode("utf-16"), [("1.png", "cat")]),
        ("a.txt", b"\xff\xe9.png\n", [("\udcff\udce9.png", None)]),
        ("a.txt", b"x\xff.png\n", [("x\udcff.png", None)]),
    ],
)
def test_h18_lists_of_many_makers_are_read(
    tmp_path: Path, name: str, text: str | bytes, found: list[tuple[str, str | None]]
) -> None:
    assert rows(write(tmp_path / name, text)) == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "no images in .*a.txt; the list names none; check the path"),
        ("a.csv", "", "a.csv line 1: no column of paths; the header is: nothing; name it one of path, file"),
        ("a.csv", "no,label\n1,2\n", "line 1: no column of paths; the header is: no, label; name it one of path"),
        ("a.csv", "no,pth\n1,a.png\n", "line 1: no column of paths; the header is: no, pth; did you mean 'path'?"),
        ("a.csv", "path,label\na.png,1\nb.png,1,2\n", "line 3: wrong number of columns; 3 cells where line 1 has 2"),
        ("a.csv", "path,label\na.png\n", "line 2: wrong number of columns; 1 cells where line 1 has 2"),
        ("a.csv", "path,label\n ,1\n", "line 2, column path: no path"),
        ("a.txt", "a.png\nb\0.png\n", "line 2: a NUL character; this is no text file"),
        ("a.txt", "a.png\nshards-000.tar\n", r"line 2: shards-000.tar; an archive; use --data 'shards-"),
        ("a.csv", "path\n" + "x" * 200_000 + "\n", "no table: field larger than field limit"),
    ],
)
def test_h18_a_list_that_cannot_be_understood_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FileList(write(tmp_path / name, text), 1)


@pytest.mark.parametrize("entry", ["pipe:touch {}", "http://127.0.0.1:1/a.png", "file:///etc/a.png", "s3://x/a.png"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_h17_a_list_runs_nothing_and_fetches_nothing(tmp_path: Path, entry: str, name: str) -> None:
    entry = entry.format(tmp_path / "ran")
    message = (
        r"line 2(, column path)?: (pipe|http|file|s3):.*; only plain paths are read, never a command or the network"
    )
    with pytest.raises(DataError, match=message):
        FileList(write(tmp_path / name, f"path\n{entry}\n" if name == "a.csv" else f"a.png\n{entry}\n"), 1)
    assert not (tmp_path / "ran").exists()


def test_what_a_list_names_is_opened_only_if_it_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    source = FileList(write(tmp_path / "a.txt", "pipe.png\n/dev/zero\nnowhere.png\n"), 1)
    for position, cause in enumerate(["not a regular file", "not a regular file", "No such file"]):
        for read in (source.__getitem__, source.read):
            with pytest.raises(DataError, match=cause):
                read(position)


LIST = """
from pathlib import Path
from smalti.data.datasets.lists import read_list

def work():
    names, labels, _, _ = read_list(Path(sys.argv[1]))
    assert len(names) == 200_000
    return names, labels.build()
"""


@pytest.mark.slow
def test_a_list_of_a_million_images_costs_less_than_150_megabytes(tmp_path: Path) -> None:
    """Measured on 200 000 with labels."""
    lines = (f"class_{i % 999:03d}/photograph_{i:012d}.jpg,class_{i % 999:03d}\n" for i in range(200_000))
    assert peak_of(LIST, str(write(tmp_path / "a.csv", "path,label\n" + "".join(lines)))) * 5 < 150e6


def test_a_list_that_cannot_be_opened_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere.txt; No such file"):
        read_list(tmp_path / "nowhere.txt")


def test_shrunk_is_the_same_image_with_a_shorter_side(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    sample = Folder(tmp_path, 3).shrunk(0, 10)
    assert sample.image.shape == (10, 20, 3)
    assert sample.key == "a.png"


def test_resident_images_are_a_source() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    resident = InMemoryDataset(images, torch.tensor([1, 0]), ("a", "b"))
    check_dataset(resident)
    assert resident[1].image.shape == (4, 5, 3)
    assert resident[1].image[2, 3].tolist() == images[1, :, 2, 3].tolist()


def test_select_takes_images_and_labels_in_the_given_order() -> None:
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    chosen = InMemoryDataset(images, torch.arange(4), ("a", "b", "c", "d")).select(np.array([2, 0, 2]))
    assert chosen.images.flatten().tolist() == chosen.labels.tolist() == [2, 0, 2]
    assert chosen.classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(("split", "count"), [("train", 20_000), ("test", 5_000)])
def test_the_embedded_images_are_the_documented_ones(split: str, count: int) -> None:
    about = json.loads((resources.files("smalti.data") / "embedded" / "fashion-mnist.json").read_text())
    images = embedded(split)
    check_dataset(images)
    assert images.images.shape == (count, 1, 28, 28)
    assert about["splits"][split]["count"] == count
    assert hashlib.sha256(images.images.numpy().tobytes()).hexdigest() == about["splits"][split]["sha256"]
    assert torch.bincount(images.labels).tolist() == [count // 10] * 10
    assert images.classes[9] == "Ankle boot"


def test_embedded_labels_fit_the_pictures() -> None:
    """Trousers are narrow and sneakers are low: a swapped axis or a shifted label would show."""
    images = embedded("test")
    mean = {name: images.images[images.labels == i, 0].double().mean(0) for i, name in enumerate(images.classes)}
    trouser, sneaker = mean["Trouser"], mean["Sneaker"]
    assert trouser[:, 10:18].mean() > 5 * trouser[:, [0, 1, 2, 3, 24, 25, 26, 27]].mean()
    assert sneaker[14:22].mean() > 5 * sneaker[:7].mean()


def test_the_embedded_photographs_can_be_read() -> None:
    paths = sorted(embedded_photographs().glob("*.jpg"))
    assert len(paths) >= 6
    for path in paths:
        assert min(decode(path, 3).shape[:2]) >= 64


PIXELS, NUMBERS = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.numpy(), NUMBERS, r"images in memory are a ndarray of uint8, \(4, 1, 2, 2\); give a tensor, uint8 n x"),
        (PIXELS.float(), NUMBERS, "images in memory are a Tensor of torch.float32, "),
        (PIXELS[0], NUMBERS, r"images in memory are a Tensor of torch.uint8, \(1, 2, 2\)"),
        (PIXELS, None, r"labels in memory are a NoneType of None, \(\); give a tensor, int64, a class number for each"),
        (PIXELS, NUMBERS[:3], r"labels in memory are a Tensor of torch.int64, \(3,\)"),
        (PIXELS, NUMBERS.float(), "labels in memory are a Tensor of torch.float32, "),
    ],
)
def test_arrays_that_are_no_images_are_refused_where_they_are_given(
    monkeypatch: pytest.MonkeyPatch, images: Any, labels: Any, message: str
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # only tests execute annotations
    with pytest.raises(UsageError, match=message):
        InMemoryDataset(images, labels)
