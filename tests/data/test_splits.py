"""Test images of their own."""

from pathlib import Path

import pytest
import torch

from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.load import Data, InMemoryData, load_splits, official_splits
from tests.small_runs import flat_pictures, pictures

DATA = Data(side=16)


def load(train: Path, test: Path) -> InMemoryData:
    return load_splits(DATA, str(train), str(test), Log())


def test_train_and_test_of_a_folder_are_found(tmp_path: Path) -> None:
    assert official_splits(str(tmp_path), "") == (str(tmp_path), "")
    flat_pictures(tmp_path / "train", 1)
    assert official_splits(str(tmp_path), "") == (str(tmp_path / "train"), "")
    flat_pictures(tmp_path / "test", 1)
    assert official_splits(str(tmp_path), "") == (str(tmp_path / "train"), str(tmp_path / "test"))
    assert official_splits(str(tmp_path), "elsewhere") == (str(tmp_path / "train"), "elsewhere")
    assert official_splits("embedded", "") == ("embedded", "")


def test_the_embedded_images_have_their_own() -> None:
    with pytest.raises(UsageError) as refusal:
        official_splits("embedded", "photos")
    assert str(refusal.value) == "test images photos, and the embedded ones have their own; leave --test out"


def test_all_images_of_both_are_there_and_a_class_has_one_number(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 5)
    pictures(tmp_path / "both", 3)
    (tmp_path / "test").mkdir()
    (tmp_path / "both" / "down").rename(tmp_path / "test" / "down")
    images = load(tmp_path / "train", tmp_path / "test")
    assert images.train.classes == images.held_out.classes == ("across", "down")
    assert torch.bincount(images.train.labels).tolist() == [5, 5]
    assert images.held_out.labels.tolist() == [1, 1, 1]


def test_test_images_are_mixed_so_that_the_first_are_of_all_classes(tmp_path: Path) -> None:
    images = load(pictures(tmp_path / "train", 4), pictures(tmp_path / "test", 12))
    assert 0 < int(images.held_out.labels[:12].sum()) < 12


def test_a_class_of_test_images_alone_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 3)
    pictures(tmp_path / "test", 3)
    (tmp_path / "test" / "down").rename(tmp_path / "test" / "upside")
    with pytest.raises(DataError) as refusal:
        load(tmp_path / "train", tmp_path / "test")
    assert str(refusal.value) == (
        f"1 classes of {tmp_path}/test are not among the training images, first 'upside'; check --test"
    )


def test_a_class_that_is_only_spelled_differently_is_named_beside_the_other(tmp_path: Path) -> None:
    """Folders copied from a Mac have another Unicode form, and look the same."""
    for name, spelled in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        pictures(tmp_path / name, 3)
        (tmp_path / name / "down").rename(tmp_path / name / spelled)
    with pytest.raises(
        DataError, match="first 'cafe\u0301', but 'caf\u00e9' is, which differs in case or Unicode form"
    ):
        load(tmp_path / "train", tmp_path / "test")


def test_test_images_without_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        load(pictures(tmp_path / "train", 3), flat_pictures(tmp_path / "test"))
    assert str(refusal.value) == f"no labels in {tmp_path}/test; the training images have some; check --test"


def test_without_labels_of_training_images_there_are_none(tmp_path: Path) -> None:
    images = load(flat_pictures(tmp_path / "train"), pictures(tmp_path / "test", 3))
    assert images.train.classes == ()
    assert (len(images.train), len(images.held_out)) == (8, 6)
