"""Images of other than one or three channels: TIFFs with bands, arrays, transparency as a channel."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data import formats, npy
from smalti.data import tiff as reading_tiffs
from smalti.data.bands import channels_of, stored_values
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.open import open_source
from smalti.data.datasets.prepared import Settings
from smalti.data.decode import decode_bytes
from smalti.data.load import Data
from smalti.data.reading import channels_in, measured_window
from smalti.data.resize import resized
from smalti.data.shard_writer import make_record
from smalti.data.tiff import bands_of
from smalti.data.transforms.augment import channel_means, colour_matrix, recolour
from smalti.data.transforms.randaugment import OPERATIONS
from tests.contracts import check_dataset
from tests.data.test_decode import png

tifffile = pytest.importorskip("tifffile")

BANDS = 5


def values(kind: type = np.uint16, height: int = 40, width: int = 48, channels: int = BANDS) -> np.ndarray:
    """Bands with ranges of their own: the second reaches twice as far as the first, and so on."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(n + 1) * (rows + 3 * columns) for n in range(channels)], axis=-1).astype(kind)


def written(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


CONTIG, SEPARATE = {"planarconfig": "contig"}, {"planarconfig": "separate"}
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "bands side by side": (False, CONTIG | {"photometric": "minisblack"}),
    "bands one after another": (True, SEPARATE | {"photometric": "minisblack"}),
    "LZW with differences": (False, CONTIG | {"photometric": "minisblack", "compression": "lzw", "predictor": True}),
    "deflate in tiles": (False, CONTIG | {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16)}),
    "RGB and two more": (False, CONTIG | {"photometric": "rgb", "extrasamples": (0, 0)}),
    "big-endian BigTIFF": (False, CONTIG | {"photometric": "minisblack", "bigtiff": True, "byteorder": ">"}),
    "a page a channel": (True, {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_all_channels_of_a_tiff_are_read(way: str, kind: type) -> None:
    array = values(kind)
    first, options = WAYS[way]
    data = written(np.moveaxis(array, -1, 0) if first else array, **options)
    assert np.array_equal(stored_values(data, "x", BANDS), array)
    window = tuple(float(bound) for n in range(BANDS) for bound in (0, array[..., n].max()))
    pixels = decode_bytes(data, "x", BANDS, None, window)
    assert pixels.shape == array.shape
    assert pixels.dtype == np.uint8
    exact = array.astype(np.float64) / array.max((0, 1)) * 255
    assert np.abs(pixels - exact).max() <= 0.5 + 1e-9
    if way != "a page a channel":
        assert channels_of(data, "x") == BANDS


def test_files_with_another_number_are_refused_in_one_line_that_says_which_and_what_to_write() -> None:
    data = written(values(), **CONTIG, photometric="minisblack")
    for wanted, said in ((3, "3 are"), (1, "1 is"), (7, "7 are")):
        with pytest.raises(DataError, match=f"^cannot read a.tif; it has 5 channels, and {said} wanted$"):
            decode_bytes(data, "a.tif", wanted)
    with pytest.raises(DataError, match=r"it has 3 channels, and 5 are wanted"):
        decode_bytes(npy.encode(np.zeros((4, 4, 3), np.uint8)), "a", 5)
    jpeg = io.BytesIO()
    Image.new("L", (8, 8)).save(jpeg, "JPEG")
    with pytest.raises(DataError, match=r"it has 1 channel, and 5 are wanted"):
        decode_bytes(jpeg.getvalue(), "a", 5)
    fix = formats.channels_remedy("it has 5 channels, and 3 are wanted")
    assert fix == "train with --data.channels 5 and as many --tokenizer.in-chans or --backbone.in-chans"


def test_transparency_is_a_channel_where_four_are_wanted_and_none_where_colours_are() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array, "RGBA").save(file, "PNG")
    assert np.array_equal(decode_bytes(file.getvalue(), "x", 4), array)
    assert channels_of(file.getvalue(), "x") == 3
    wide = np.repeat(array, 2, axis=2)  # every value twice: v in 16 bits is 257 v
    data = png(9, 6, b"".join(b"\0" + row.tobytes() for row in wide), depth=16, kind=6)
    assert np.array_equal(stored_values(data, "x", 4), array * np.uint16(257))
    assert np.array_equal(decode_bytes(data, "x", 4), array)
    brighter = (array * (255 / 128) + 0.5).clip(0, 255).astype(np.uint8)
    assert np.array_equal(decode_bytes(data, "x", 4, None, (0.0, 257.0 * 128)), brighter)
    for alpha, channels in ((0, 4), (2, 3)):  # of unknown meaning, as near infrared, or transparency
        data = written(array, photometric="rgb", extrasamples=(alpha,))
        assert channels_of(data, "x") == channels
        assert np.array_equal(decode_bytes(data, "x", 4), array)


def test_colours_that_pillow_has_no_mode_for_are_read_too() -> None:
    array = values(np.float32, channels=3)
    data = written(array, photometric="rgb")
    grey = decode_bytes(data, "x", 1)
    colour = decode_bytes(data, "x", 3, None, (0.0, float(array.max())))
    assert np.abs(colour - array / array.max() * 255).max() <= 0.5
    assert grey.shape == (*array.shape[:2], 1)


@pytest.mark.parametrize(
    ("tag", "value", "cause"),
    [
        (256, 1 << 30, "pixels"),
        (277, 65000, "channels|kind|limit"),
        (322, 1 << 20, "tiles are far larger"),
        (259, 7, "compression 7; read are none, LZW, deflate"),
    ],
)
def test_what_a_hostile_file_claims_is_refused_before_memory_is_taken(tag: int, value: int, cause: str) -> None:
    data = bytearray(written(values(np.uint8), **CONTIG, photometric="minisblack", tile=(16, 16), compression="zlib"))
    place = struct.unpack_from("<I", data, 4)[0]
    for entry in range(place + 2, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], 12):
        found, kind = struct.unpack_from("<HH", data, entry)
        if found == tag:
            struct.pack_into("<H" if kind == 3 else "<I", data, entry + 8, value & (0xFFFF if kind == 3 else -1))
            if kind == 3 and value > 0xFFFF:
                struct.pack_into("<HHII", data, entry, tag, 4, 1, value)
    with pytest.raises(DataError, match=cause):
        decode_bytes(bytes(data), "x", min(value, 64) if tag == 277 else BANDS)


def test_a_tile_that_unpacks_to_more_than_it_should_stays_small() -> None:
    data = written(np.zeros((16, 16, BANDS), np.uint8), **CONTIG, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        at, entries = page.dataoffsets[0], {tag.code: tag.valueoffset for tag in page.tags}
    bomb = zlib.compress(bytes(20 << 20))
    grown = bytearray(data[:at] + bomb)
    struct.pack_into("<I", grown, entries[279], len(bomb))
    with pytest.raises(DataError, match="damaged"):
        decode_bytes(bytes(grown), "x", BANDS)


def test_every_cut_of_a_file_is_a_bad_image() -> None:
    data = written(values(np.uint8, 8, 8), **CONTIG, photometric="minisblack", compression="lzw")
    for length in range(0, len(data), 17):
        with pytest.raises(DataError, match="cannot read x"):
            decode_bytes(data[:length], "x", BANDS)
    assert bands_of(data[:20]).channels == 1


def test_without_the_plugin_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(reading_tiffs, "import_module", missing)
    with pytest.raises(DataError, match=r"is read with tifffile: pip install 'smalti\[formats\]'"):
        decode_bytes(written(values(), **CONTIG, photometric="minisblack"), "x", BANDS)
    with pytest.raises(DataError, match="it has 5 channels, and 3 are wanted"):
        decode_bytes(written(values(), **CONTIG, photometric="minisblack"), "x", 3)


@pytest.fixture
def bands(tmp_path: Path) -> Path:
    for number, name in enumerate(("forest", "water")):
        (tmp_path / "bands" / name).mkdir(parents=True)
        for image in range(3):
            array = values() * (1 + number) + np.uint16(image)
            (tmp_path / "bands" / name / f"{image}.npy").write_bytes(saved(array))
    return tmp_path / "bands"


def test_arrays_are_images_where_there_are_no_others(bands: Path) -> None:
    source = open_source(str(bands), BANDS)
    check_dataset(source)
    assert source.classes == ("forest", "water")
    assert channels_in(open_source(str(bands), 3)) == BANDS
    assert source[0].image.shape == (40, 48, BANDS)
    Image.new("RGB", (8, 8)).save(bands / "forest" / "a.png")
    beside = Folder(bands, 3)
    assert len(beside) == 1
    assert beside.left_out.suffix_line() == "6 .npy"


def test_splits_and_lists_of_arrays_are_read_as_those_of_images(bands: Path) -> None:
    (bands / "forest").rename(bands / "train")
    (bands / "water").rename(bands / "test")
    assert len(open_source(str(bands), BANDS)) == 3
    (bands / "list.txt").write_text("train/0.npy 1\ntest/1.npy 0\n")
    assert open_source(str(bands / "list.txt"), BANDS).classes == ("0", "1")


def test_a_window_is_measured_for_each_channel(bands: Path) -> None:
    window = measured_window(open_source(str(bands), BANDS), Log())
    assert len(window) == 2 * BANDS
    tops = np.array(window[1::2])
    assert np.allclose(tops / tops[0], np.arange(1, BANDS + 1), rtol=0.02)
    data = Data(str(bands), channels=BANDS, window="auto", side=16).measured()
    means = data.load(Log()).train.images.float().mean((0, 2, 3))
    assert means.max() < 1.05 * means.min(), "bands of different ranges are equally bright"


def test_the_error_of_a_run_says_what_to_write(bands: Path) -> None:
    with pytest.raises(DataError, match=r"6 of 6 images cannot be read.*it has 5 channels.*--data.channels 5 and"):
        Data(str(bands), side=16).load(Log())
    with pytest.raises(UsageError, match=r"65 channels; use 1 \(grey\), 3 \(RGB\), or as many as the images have"):
        Data(channels=65)
    with pytest.raises(UsageError, match=r"channels \(0, 1, 5\) of 5 in pictures"):
        Data(channels=5, show_channels=(0, 1, 5))


def test_what_is_prepared_is_the_pixels_without_loss(bands: Path) -> None:
    source = open_source(str(bands), BANDS)
    record = make_record(source, 0, Settings("", "", 16, "jpeg", 90, BANDS, None, 0, ""))
    assert record.suffix == "npy"
    assert np.array_equal(npy.decode(record.data), source.shrunk(0, 16).image)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_channels_are_resized_one_by_one(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    found = resized(pixels, (8, 9), Image.Resampling.BICUBIC, (1.0, 2.0, 27.5, 19.0))
    for n in range(channels):
        alone = Image.fromarray(pixels[..., n]).resize((9, 8), Image.Resampling.BICUBIC, (1.0, 2.0, 27.5, 19.0))
        assert np.array_equal(found[..., n], np.asarray(alone))


def test_jitter_of_bands_is_brightness_and_contrast_of_each(rng: torch.Generator) -> None:
    images = torch.rand(2, BANDS, 4, 4, generator=rng) / 4 + 0.25
    factors = torch.tensor([[1.2, 0.5, 0.1], [0.9, 1.3, 1.9]])
    changed = recolour(images, *colour_matrix(factors, channel_means(images)), torch.tensor([False, False]))
    mean = images.mean((2, 3), keepdim=True)
    brightness, contrast = factors[:, 0, None, None, None], factors[:, 1, None, None, None]
    assert torch.allclose(changed, brightness * (mean + contrast * (images - mean)), atol=1e-6)


def test_every_operation_of_randaugment_takes_any_number_of_channels(rng: torch.Generator) -> None:
    levels = torch.randint(0, 256, (2, BANDS, 8, 8), generator=rng).float()
    for operation in OPERATIONS:
        amount = torch.from_numpy(operation.amount(np.full(2, 0.5), np.ones(2))).float()
        assert operation.change(levels.clone(), amount).shape == levels.shape
