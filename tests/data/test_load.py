"""DATA, as given on the command line, to images in memory."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.load import Data, split_held_out
from smalti.data.sources import Resident, embedded
from tests.data.test_decode import png_of


def fill(folder: Path, count: int, suffix: str = ".png") -> None:
    """Images whose every pixel is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (12, 10), number).save(folder / f"{number:03d}{suffix}")


def resident(length: int) -> Resident:
    return Resident(torch.zeros(length, 1, 4, 4, dtype=torch.uint8), torch.arange(length))


def values(images: Resident) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def test_a_folder_is_read_into_memory_and_split(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    train, held_out = Data(str(tmp_path), side=8, held_out=0.2).load(Log())
    assert train.images.shape == (16, 3, 8, 8)
    assert held_out.images.shape == (4, 3, 8, 8)
    assert train.images.dtype == torch.uint8
    assert sorted(values(train) + values(held_out)) == list(range(20))


def test_reading_twice_gives_the_same_images_and_the_same_split(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    data = Data(str(tmp_path), channels=1, side=4, held_out=0.3)
    (train, held_out), (train_again, held_out_again) = data.load(Log()), data.load(Log())
    assert torch.equal(train.images, train_again.images)
    assert torch.equal(held_out.images, held_out_again.images)


def test_class_folders_become_labels(tmp_path: Path) -> None:
    fill(tmp_path / "cats", 4)
    fill(tmp_path / "dogs", 4)
    train, held_out = Data(str(tmp_path), side=8).load(Log())
    assert train.classes == ("cats", "dogs")
    assert sorted(train.labels.tolist() + held_out.labels.tolist()) == [0] * 4 + [1] * 4


def test_the_centre_square_is_taken(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:16] = 200
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    train, _ = Data(str(tmp_path), channels=1, side=8).load(Log())
    assert train.images.unique().tolist() == [200]


def test_a_limit_takes_an_even_sample(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    train, held_out = Data(str(tmp_path), channels=1, side=4, limit=10).load(Log())
    assert sorted(values(train) + values(held_out)) == list(range(0, 30, 3))


def test_a_bad_file_is_listed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "images", 10)
    bad = tmp_path / "images" / "005.png"
    bad.write_text("no image")
    listing = tmp_path / "run" / "bad_files.jsonl"
    train, held_out = Data(str(tmp_path / "images"), channels=1, side=4).load(Log(), listing)
    assert sorted(values(train) + values(held_out)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [json.loads(line) for line in listing.read_text().splitlines()] == [
        {"path": str(bad), "reason": "not an image in a format smalti knows"}
    ]
    assert "left out: 1 of 10 images cannot be read" in capsys.readouterr().err


def test_no_list_is_written_where_every_file_is_good(tmp_path: Path) -> None:
    fill(tmp_path / "images", 3)
    Data(str(tmp_path / "images"), side=4).load(Log(), tmp_path / "bad_files.jsonl")
    assert not (tmp_path / "bad_files.jsonl").exists()


def test_too_many_bad_files_are_a_data_error_and_still_listed(tmp_path: Path) -> None:
    fill(tmp_path / "images", 20)
    for number in range(3):
        (tmp_path / "images" / f"{number:03d}.png").write_bytes(b"")
    data = Data(str(tmp_path / "images"), side=4, max_bad_fraction=0.1)
    message = r"3 of 20 images cannot be read, first .*000\.png;.*raise --data\.max-bad-fraction"
    with pytest.raises(DataError, match=message):
        data.load(Log(), tmp_path / "bad_files.jsonl")
    assert len((tmp_path / "bad_files.jsonl").read_text().splitlines()) == 3
    assert len(Data(str(tmp_path / "images"), side=4, max_bad_fraction=0.15).load(Log()).train) > 0


def test_a_folder_of_bad_files_only_is_a_data_error_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        Data(str(tmp_path), max_bad_fraction=1.0).load(Log())


@pytest.mark.parametrize("name", ["new\nline.png", "\udcff.png"])
def test_a_bad_file_of_any_name_is_one_line_of_json(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "images", 5)
    (tmp_path / "images" / name).write_text("x")
    Data(str(tmp_path / "images"), side=4).load(Log(), tmp_path / "bad.jsonl")
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [str(tmp_path / "images" / name)]


def test_no_warning_of_the_decoder_reaches_the_user_and_the_filters_stay_as_they_were(tmp_path: Path) -> None:
    """An image of more than 89 million pixels warns in Pillow; many threads must not leave a filter behind."""
    fill(tmp_path / "images", 60)
    (tmp_path / "images" / "large.png").write_bytes(png_of(9_500))
    before = list(warnings.filters)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inside = list(warnings.filters)
            Data(str(tmp_path / "images"), side=4).load(Log())
            left = list(warnings.filters)
    finally:
        warnings.filters[:] = before
    assert [str(warning.message) for warning in caught] == []
    assert left == inside


def test_one_image_is_too_few(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(DataError, match="only 1 readable image; training and measuring need at least 2"):
        Data(str(tmp_path), side=4).load(Log())


def test_what_is_no_folder_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()
    for path, message in (
        ("", "no images given; use --data FOLDER, or --data embedded"),
        (str(tmp_path / "nowhere"), "no folder .*nowhere; it does not exist; check --data"),
        (str(tmp_path / "file.png"), "file.png is a file; DATA is a folder of images"),
        (str(tmp_path / "empty"), "no images in"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            Data(path).load(Log())


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28), (1, 14)])
def test_embedded_images_come_in_the_asked_size(channels: int, side: int) -> None:
    data = Data("embedded", channels=channels, side=side, limit=40)
    train, held_out = data.load(Log())
    assert train.images.shape == held_out.images.shape == (40, channels, side, side)
    assert torch.bincount(train.labels).tolist() == [4] * 10
    if side == 28:
        assert torch.equal(train.images[:, :1], embedded("train").images[:40])
        assert torch.equal(held_out.images[:, :1], embedded("test").images[:40])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("length", [2, 3, 100])
def test_the_split_puts_a_share_aside_and_keeps_both_sides_filled(length: int, share: float) -> None:
    train, held_out = split_held_out(resident(length), share)
    assert sorted(train.labels.tolist() + held_out.labels.tolist()) == list(range(length))
    assert len(held_out) == min(max(1, round(share * length)), length - 1)


def test_held_out_images_are_spread_over_the_folder() -> None:
    _, held_out = split_held_out(resident(1000), 0.1)
    assert abs(float(held_out.labels.double().mean()) - 500) < 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 2}, "2 channels; use 1 or 3"),
        ({"side": 3}, "images of 3 pixels; use at least 4"),
        ({"held_out": 0.0}, "a held-out share of 0.0"),
        ({"held_out": 1.0}, "a held-out share of 1.0"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction 1.5"),
        ({"limit": 1}, "a limit of 1 images; use at least 2"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Data("x", **fields)
