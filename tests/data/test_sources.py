"""Folders of images, images in memory, and the images inside the package."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.decode import decode
from smalti.data.sources import Folder, Resident, embedded, embedded_photographs
from tests.contracts import check_source


def put(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4), value).save(path)


def keys(folder: Folder) -> list[str]:
    return [folder[i].key for i in range(len(folder))]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for value, name in enumerate(["b.png", "a.jpg", "C.PNG"]):
        put(tmp_path / name, value)
    folder = Folder(tmp_path, 1)
    check_source(folder)
    assert keys(folder) == ["C.PNG", "a.jpg", "b.png"]
    assert folder.classes == ()
    assert [folder[i].label for i in range(3)] == [-1, -1, -1]
    assert folder[2].image.tolist() == np.zeros((4, 5, 1)).tolist()


def test_class_folders_are_the_labels_in_sorted_order(tmp_path: Path) -> None:
    for name in ["dog/1.png", "cat/2.png", "dog/0.png", "bird/deep/er/3.png"]:
        put(tmp_path / name)
    folder = Folder(tmp_path, 3)
    check_source(folder)
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


def test_strange_names_are_read(tmp_path: Path) -> None:
    names = ["a b.png", "ä.png", "new\nline.png", "-x.png", "日本.png"]
    for name in names:
        put(tmp_path / name)
    assert sorted(keys(Folder(tmp_path, 1))) == sorted(names)


def test_an_empty_folder_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no images in .*; no file there has an image's extension; check --data"):
        Folder(tmp_path, 1)


def test_shrunk_is_the_same_image_with_a_shorter_side(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    sample = Folder(tmp_path, 3).shrunk(0, 10)
    assert sample.image.shape == (10, 20, 3)
    assert sample.key == "a.png"


def test_resident_images_are_a_source() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    resident = Resident(images, torch.tensor([1, 0]), ("a", "b"))
    check_source(resident)
    assert resident[1].image.shape == (4, 5, 3)
    assert resident[1].image[2, 3].tolist() == images[1, :, 2, 3].tolist()


def test_select_takes_images_and_labels_in_the_given_order() -> None:
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    chosen = Resident(images, torch.arange(4), ("a", "b", "c", "d")).select(np.array([2, 0, 2]))
    assert chosen.images.flatten().tolist() == chosen.labels.tolist() == [2, 0, 2]
    assert chosen.classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(("split", "count"), [("train", 20_000), ("test", 5_000)])
def test_the_embedded_images_are_the_documented_ones(split: str, count: int) -> None:
    about = json.loads((resources.files("smalti.data") / "embedded" / "fashion-mnist.json").read_text())
    images = embedded(split)
    check_source(images)
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
