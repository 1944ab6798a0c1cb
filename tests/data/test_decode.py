"""Image files of every kind to arrays."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.decode import EXTENSIONS, decode

ORIENTATION = 0x0112
UPRIGHT = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
STORED = {  # how a camera stores the upright picture under each EXIF orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def smooth(height: int = 24, width: int = 32) -> np.ndarray:
    """A picture that lossy formats keep well."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 2], axis=-1).astype(np.uint8)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png_of(side: int) -> bytes:
    """A PNG that claims `side` x `side` pixels and holds none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, extension: str, mode: str) -> None:
    path = tmp_path / f"a.{extension}"
    picture = Image.fromarray(UPRIGHT).convert(mode)
    picture.save(path)
    grey, colour = decode(path, 1), decode(path, 3)
    assert grey.dtype == colour.dtype == np.uint8
    assert grey.shape == (6, 10, 1)
    assert np.array_equal(grey[..., 0], np.asarray(picture.convert("L")))
    assert np.array_equal(colour, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_lossy_formats_come_back_closely(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(smooth()).save(path, quality=95)
    assert np.abs(decode(path, 3).astype(int) - smooth()).mean() < 4


def test_the_format_is_that_of_the_content_not_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(UPRIGHT).save(path, format="PNG")
    assert np.array_equal(decode(path, 3), UPRIGHT)


def test_a_cmyk_jpeg_has_the_right_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)  # no cyan, all magenta and yellow: red
    assert decode(path, 3)[8, 8].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.fromarray(smooth()).quantize(16)
    picture.save(path)
    assert np.array_equal(decode(path, 3), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    assert decode(path, 3)[0, :, 0].tolist() == pytest.approx([255, 127, 0], abs=1)
    assert decode(path, 1)[0, :, 0].tolist() == pytest.approx([255, 127, 0], abs=1)


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_a_transparent_palette_entry_is_white(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    picture.save(path, transparency=0)
    pixels = decode(path, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, name: str, dtype: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    if dtype == ">u2" and not name.endswith("tiff"):
        pytest.skip("only TIFF comes in two byte orders")
    Image.fromarray(ramp.astype(dtype)).save(tmp_path / name)
    expected = ramp.astype(float) * 255 / 65535
    assert np.abs(decode(tmp_path / name, 1)[..., 0] - expected).max() <= 1
    assert np.abs(decode(tmp_path / name, 3)[..., 2] - expected).max() <= 1


def test_floats_are_scaled_by_their_greatest_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0, 2.0]], np.float32)).save(tmp_path / "a.tiff")
    assert decode(tmp_path / "a.tiff", 1)[0, :, 0].tolist() == pytest.approx([0, 127.5, 255], abs=1)


@pytest.mark.parametrize("depth", ["1", "L"])
def test_bilevel_and_grey_become_the_asked_channels(tmp_path: Path, depth: str) -> None:
    Image.new(depth, (5, 4), 255 if depth == "L" else 1).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 1).shape == (4, 5, 1)
    assert decode(tmp_path / "a.png", 3).tolist() == np.full((4, 5, 3), 255).tolist()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_exif_orientation_turns_the_image_upright(tmp_path: Path, orientation: int, channels: int) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=oriented(orientation))
    expected = np.asarray(Image.fromarray(UPRIGHT).convert("L" if channels == 1 else "RGB")).reshape(6, 10, channels)
    assert np.array_equal(decode(path, channels), expected)


def test_the_exif_orientation_of_a_jpeg_counts_when_shrinking_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.rot90(smooth(200, 400))).save(path, exif=oriented(6), quality=95)
    assert decode(path, 3).shape == (200, 400, 3)
    shrunk = decode(path, 3, shorter_side=20)
    assert shrunk.shape == (20, 40, 3)
    expected = Image.fromarray(smooth(200, 400)).resize((40, 20), Image.Resampling.BICUBIC)
    assert np.abs(shrunk.astype(int) - np.asarray(expected)).mean() < 5


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["RGBA", "16 bit", "transparent palette"])
def test_the_exif_orientation_counts_for_transparent_and_16_bit_images(
    tmp_path: Path, orientation: int, kind: str
) -> None:
    path = tmp_path / "a.png"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    if kind == "16 bit":
        Image.fromarray(np.asarray(stored.convert("L")).astype(np.uint16) * 257).save(path, exif=oriented(orientation))
        expected = np.asarray(Image.fromarray(UPRIGHT).convert("L"))
    elif kind == "RGBA":
        stored.convert("RGBA").save(path, exif=oriented(orientation))
        expected = np.asarray(Image.fromarray(UPRIGHT).convert("L"))
    else:
        flat = Image.fromarray((np.asarray(stored.convert("L")) // 64).astype(np.uint8), "P")
        flat.putpalette([value for grey in (10, 20, 30, 40) for value in (grey,) * 3])
        flat.save(path, exif=oriented(orientation), transparency=200)
        expected = np.asarray(Image.fromarray(UPRIGHT).convert("L")) // 64 * 10 + 10
    assert np.array_equal(decode(path, 1)[..., 0], expected)


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue, blue])
    assert decode(path, 3)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_the_multi_picture_file_of_a_phone_is_read_as_its_first_picture(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.mpo", save_all=True, append_images=[blue])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg", 3)[8, 8].tolist() == pytest.approx([254, 0, 0], abs=6)


@pytest.mark.parametrize(("shorter_side", "size"), [(12, (12, 16)), (24, (24, 32)), (100, (24, 32)), (1, (1, 1))])
def test_shrinking_keeps_the_shape_and_never_enlarges(tmp_path: Path, shorter_side: int, size: tuple[int, int]) -> None:
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 3, shorter_side).shape == (*size, 3)


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000)])
def test_thin_images_keep_at_least_a_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    assert min(decode(tmp_path / "a.png", 1, 1).shape[:2]) == 1


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_a_data_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read .*a\."):
        decode(path, 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"])
def test_what_is_no_image_is_a_data_error_with_a_cause(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*a.jpg; .+"):
        decode(tmp_path / "a.jpg", 3)


def test_a_format_outside_the_list_is_a_data_error(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", format="PCX")
    with pytest.raises(DataError, match="not an image in a format smalti knows"):
        decode(tmp_path / "a.jpg", 3)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        decode(tmp_path / "nowhere.png", 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 50_000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(side))
    with pytest.raises(DataError, match="pixels"):
        decode(tmp_path / "bomb.png", 1)


def test_the_extensions_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tiff", ".tif", ".bmp"} <= EXTENSIONS
    assert all(extension == extension.lower() and extension[0] == "." for extension in EXTENSIONS)
