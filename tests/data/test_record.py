"""What is stored of an image: which files are kept, which are encoded, and that both decoders read it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import DataError
from smalti.data import decode, npy, shard_writer
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.datasets.file_list import FileList
from smalti.data.datasets.prepared import Encoding, Settings
from smalti.data.decode import decode_bytes
from smalti.data.shard_writer import encode_jpeg, make_record

simplejpeg = pytest.importorskip("simplejpeg")


def scene(width: int = 120, height: int = 90, mode: str = "RGB") -> Image.Image:
    """A smooth picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def source_of(folder: Path, picture: Image.Image, name: str, channels: int = 3, **options: Any) -> FileList:
    picture.save(folder / name, **options)
    return listed(folder, name, channels)


def listed(folder: Path, name: str, channels: int = 3) -> FileList:
    (folder / "list.txt").write_text(name + "\n")
    return FileList(folder / "list.txt", channels)


def form(side: int = 256, encoding: Encoding = "jpeg", quality: int = 95, channels: int = 3) -> Settings:
    return Settings("", "", side, encoding, quality, channels, None, 0, "")


def turned(degrees_tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = degrees_tag
    return exif


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64, 90, 256])
def test_raw_records_are_the_shrunk_pixels_without_loss_and_never_larger(
    tmp_path: Path, side: int, channels: int
) -> None:
    source = source_of(tmp_path, scene(), "a.png", channels)
    made = make_record(source, 0, form(side, "raw", channels=channels))
    pixels = decode_bytes(made.data, "", channels)
    assert npy.shape(made.data) == pixels.shape
    assert min(pixels.shape[:2]) == min(side, 90)
    assert np.array_equal(pixels, source.shrunk(0, side).image)
    assert (made.key, made.label) == ("a.png", -1)


@pytest.mark.parametrize("library", ["simplejpeg", "Pillow"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_of_either_library_are_alike_and_read_by_both(
    tmp_path: Path, library: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "Pillow":
        monkeypatch.setattr(shard_writer, "simplejpeg", None)
    source = source_of(tmp_path, scene(301, 201), "a.png", channels)
    made = make_record(source, 0, form(64, channels=channels))
    height, width, _, sampling = simplejpeg.decode_jpeg_header(made.data)
    assert (height, width, sampling) == (64, 96, "420" if channels == 3 else "Gray")
    expected = source.shrunk(0, 64).image.astype(float)
    for reader in (simplejpeg, None):
        monkeypatch.setattr(decode, "simplejpeg", reader)
        pixels = decode_bytes(made.data, "", channels)
        assert pixels.shape == (64, 96, channels)
        assert np.abs(pixels - expected).mean() < 2


def test_a_lower_quality_is_smaller() -> None:
    pixels = np.asarray(scene())
    assert len(encode_jpeg(pixels, 50)) < len(encode_jpeg(pixels, 80)) < len(encode_jpeg(pixels, 95))


@pytest.mark.parametrize(
    ("side", "channels", "mode", "options"),
    [
        (256, 3, "RGB", {}),
        (90, 3, "RGB", {"progressive": True}),
        (256, 3, "L", {}),
        (256, 1, "L", {}),
        (256, 3, "RGB", {"exif": turned(1)}),
        (256, 3, "RGB", {"exif": turned(9)}),
        (256, 3, "RGB", {"exif": b"Exif\0\0broken"}),
    ],
)
def test_a_small_upright_jpeg_is_kept_byte_for_byte(
    tmp_path: Path, side: int, channels: int, mode: str, options: dict[str, Any]
) -> None:
    source = source_of(tmp_path, scene(mode=mode), "a.jpg", channels, quality=30, **options)
    assert make_record(source, 0, form(side, channels=channels)).data == (tmp_path / "a.jpg").read_bytes()


@pytest.mark.parametrize(
    ("side", "channels", "mode", "options"),
    [
        (89, 3, "RGB", {}),
        (256, 1, "RGB", {}),
        (256, 3, "CMYK", {}),
        *((256, 3, "RGB", {"exif": turned(tag)}) for tag in (2, 3, 6, 8)),
    ],
)
def test_any_other_jpeg_is_encoded_upright_and_in_the_asked_colours(
    tmp_path: Path, side: int, channels: int, mode: str, options: dict[str, Any]
) -> None:
    source = source_of(tmp_path, scene(mode=mode), "a.jpg", channels, **options)
    made = make_record(source, 0, form(side, channels=channels))
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.mode == ("RGB" if channels == 3 else "L")
        assert image.getexif().get(0x0112) is None
    assert made.data != (tmp_path / "a.jpg").read_bytes()
    pixels = decode_bytes(made.data, "", channels).astype(float)
    assert np.abs(pixels - source.shrunk(0, side).image).mean() < 3


def test_a_small_jpeg_gets_the_value_window_as_a_large_one_does(tmp_path: Path) -> None:
    source = source_of(tmp_path, scene(), "a.jpg", quality=90)
    source.window = (64.0, 192.0)
    for side in (32, 90):  # shrunk, and as large as the file
        stored = decode_bytes(make_record(source, 0, form(side)).data, "", 3).astype(float)
        assert np.abs(stored - source.shrunk(0, side).image).mean() < 5


def test_raw_keeps_no_jpeg(tmp_path: Path) -> None:
    source = source_of(tmp_path, scene(), "a.jpg")
    assert npy.shape(make_record(source, 0, form(encoding="raw")).data) == (90, 120, 3)


def test_an_image_of_a_few_pixels_is_stored_without_loss(tmp_path: Path) -> None:
    source = source_of(tmp_path, scene(9, 7), "a.png")
    made = make_record(source, 0, form())
    assert npy.shape(made.data) == (7, 9, 3)
    assert np.array_equal(decode_bytes(made.data, "", 3), source[0].image)


def test_a_damaged_file_is_refused_even_where_it_would_be_kept(tmp_path: Path) -> None:
    source_of(tmp_path, scene(), "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cannot read .*cut\.jpg; damaged: "):
        make_record(listed(tmp_path, "cut.jpg"), 0, form())


def test_what_is_too_long_for_a_jpeg_is_refused_or_stored_raw() -> None:
    source = InMemoryDataset(torch.zeros(1, 1, 700, 65_501, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    message = "cannot store 0; 65501x700 pixels: a JPEG has at most 65500 a side"
    with pytest.raises(DataError, match=message):
        make_record(source, 0, form(700, channels=1))
    assert len(make_record(source, 0, form(700, "raw", channels=1)).data) == 700 * 65_501 + 128
