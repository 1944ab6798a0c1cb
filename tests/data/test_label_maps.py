"""Masks as files: what their ids mean, and every way in which a file is none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.label_maps import Numbering, count_classes, read_class_names, read_mask
from smalti.functional.metrics import VOID

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)
FIX = "write PNGs of 8-bit grey, the class of each pixel"
MAY_BE_LISTED = ("it has a palette", "it has 1 bits a pixel")


@given(void=st.integers(0, 255), num_classes=st.integers(2, 254))
def test_classes_are_all_ids_but_void_in_order(void: int, num_classes: int) -> None:
    ids = [number for number in range(256) if number != void][:num_classes]
    numbering = Numbering(void, num_classes)
    shown = np.array([[*ids, void]], np.uint8)
    assert numbering(shown)[0].tolist() == [*range(num_classes), VOID]
    assert count_classes([*ids, void], void) == num_classes
    for number in (*ids, void):
        numbering.require(number, "mask.png")
    for number in set(range(256)) - {*ids, void}:
        with pytest.raises(DataError, match=f"mask.png has the id {number}; there are {num_classes} classes"):
            numbering.require(number, "mask.png")


def test_an_id_outside_is_named_with_what_to_do() -> None:
    message = (
        "m.png has the id 12; there are 11 classes, and 11 is void; say how many with --task.num-classes or"
        " --task.class-names, or which is void with --task.void"
    )
    with pytest.raises(DataError) as caught:
        Numbering(11, 11).require(12, "m.png")
    assert str(caught.value) == message


def test_void_alone_is_no_class() -> None:
    assert count_classes([255], 255) == 0
    assert count_classes([0, 3, 255], 255) == 4
    assert count_classes([0, 3], 0) == 3


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(IDS).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", (3, 4)).ids, IDS)


@pytest.mark.parametrize(
    ("picture", "cause"),
    [
        (Image.fromarray(IDS).convert("P"), "it has a palette"),
        (Image.fromarray(IDS.astype(np.uint16)), "it has 16 bits a pixel"),
        (Image.fromarray(IDS > 3), "it has 1 bits a pixel"),
        (Image.fromarray(IDS).convert("RGB"), "it has colours"),
        (Image.fromarray(IDS).convert("LA"), "it has transparency"),
        (Image.fromarray(IDS).convert("RGBA"), "it has colours and transparency"),
    ],
)
def test_other_pixels_are_refused(tmp_path: Path, picture: Image.Image, cause: str) -> None:
    picture.save(tmp_path / "mask.png")
    with pytest.raises(DataError) as caught:
        read_mask(tmp_path / "mask.png", (3, 4))
    more = "; where these are classes: --task.ids auto" if cause in MAY_BE_LISTED else ""
    assert str(caught.value) == f"{tmp_path / 'mask.png'} cannot be a mask; {cause}; {FIX}{more}"


def test_what_is_no_png_is_refused_under_any_name(tmp_path: Path) -> None:
    Image.fromarray(IDS).save(tmp_path / "mask.png", "BMP")
    with pytest.raises(DataError, match=f"mask.png cannot be a mask; it is no PNG; {FIX}"):
        read_mask(tmp_path / "mask.png", (3, 4))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(IDS).save(tmp_path / "mask.png")
    with pytest.raises(DataError) as caught:
        read_mask(tmp_path / "mask.png", (4, 3))
    cause = "the mask has 4x3 pixels, its image 3x4"
    assert str(caught.value) == f"{tmp_path / 'mask.png'} does not lie on its image; {cause}; make them of one size"


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(path)
    whole = path.read_bytes()
    for length in (10, 30, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cannot read .*mask\.png; damaged: "):
            read_mask(path, (64, 64))


def test_names_of_classes_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("sky\n\n  traffic light \nroad\n")
    assert read_class_names(path) == ("sky", "traffic light", "road")
    for text, cause in ((b"sky\nroad\nsky\n", "sky stands there twice"), (b"\n", "it is empty")):
        path.write_bytes(text)
        with pytest.raises(DataError) as caught:
            read_class_names(path)
        assert str(caught.value) == f"{path} cannot name classes; {cause}"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*names\.txt; it is no UTF-8 text"):
        read_class_names(path)
