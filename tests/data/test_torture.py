"""Every file of a collection of hostile images has one outcome, written down in torture.tsv.

The files are not part of the project: SMALTI_TEST_DATA names the folder that holds `torture/`. After a change that is
meant, `python -m tests.data.test_torture` writes the table anew; read its difference line by line.
"""

import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from smalti.core.errors import DataError
from smalti.data import decode as decoding
from smalti.data.datasets.folder import Files
from smalti.data.datasets.names import PackedNamesBuilder
from smalti.data.decode import decode
from smalti.data.transforms.augment import Render
from smalti.data.transforms.views import RandomResizedCrop, TwoViews

TABLE = Path(__file__).with_name("torture.tsv")
EXPECTED = dict(line.split("\t", 1) for line in TABLE.read_text().splitlines()) if TABLE.exists() else {}
TOLERANCE = 3  # grey levels of a thumbnail: decoders of lossy formats differ a little from version to version
REASONS = (
    "not an image in a format",
    "damaged",
    "above the limit",
    "times the other",
    "the file is empty",
    "not read",
    "is read with",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about metadata


class Torture(Files):
    kind = "torture"


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are those without plugins, wherever the tests run."""
    for name in ("pillow_heif.as_plugin", "pillow_jxl.JpegXLImagePlugin"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def torture() -> Path:
    folder = Path(os.environ.get("SMALTI_TEST_DATA", "")) / "torture"
    if "SMALTI_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("SMALTI_TEST_DATA does not name a folder with torture/")
    return folder


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Nine colours: enough to see wrong colours and a wrong turn."""
    return np.asarray(Image.fromarray(pixels).resize((3, 3), Image.Resampling.BOX)).reshape(-1)


def outcome(path: Path) -> str:
    """`ok HEIGHTxWIDTH THUMBNAIL`, or `error REASON`."""
    try:
        pixels = decode(path, 3)
    except DataError as error:
        return "error " + next(reason for reason in REASONS if reason in error.cause)
    return f"ok {pixels.shape[0]}x{pixels.shape[1]} {thumbnail(pixels).tobytes().hex()}"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_hostile_file_has_its_outcome(torture: Path, name: str) -> None:
    expected, found = EXPECTED[name], outcome(torture / name)
    if expected.startswith("error"):
        assert found == expected
        return
    *kind_and_size, colours = expected.split()
    *found_kind_and_size, found_colours = found.split()
    assert found_kind_and_size == kind_and_size
    difference = np.abs(
        np.subtract(*(np.frombuffer(bytes.fromhex(c), np.uint8).astype(int) for c in (colours, found_colours)))
    )
    assert difference.max() <= TOLERANCE


def test_the_table_has_every_file(torture: Path) -> None:
    assert {path.name for path in torture.iterdir()} - {"MANIFEST.tsv"} == set(EXPECTED)


def test_a_hostile_file_has_the_same_outcome_in_grey(torture: Path) -> None:
    for name, expected in EXPECTED.items():
        kind, size, *_ = expected.split()
        if kind == "ok":
            assert "{}x{}x{}".format(*decode(torture / name, 1).shape) == f"{size}x1", name
        else:
            with pytest.raises(DataError, match=re.escape(str(torture / name))):
                decode(torture / name, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_hostile_file_has_the_same_outcome_as_an_image_to_train_on(torture: Path, channels: int) -> None:
    """Also where a small crop lets it be decoded at a fraction of its size."""
    names = PackedNamesBuilder()
    for name in EXPECTED:
        names.add(os.fsencode(name))
    source = Torture(torture, names.build(), channels)
    render = Render(source, TwoViews(RandomResizedCrop(), (8, 8), (4, 4)))
    out = [np.zeros(shape, np.uint8) for shape in render.shapes]
    for position, (name, expected) in enumerate(EXPECTED.items()):
        if expected.startswith("ok"):
            render(position, key=position, out=out)
        else:
            with pytest.raises(DataError, match=re.escape(name)):
                render(position, key=position, out=out)


def test_colours_are_pillows_where_pillow_is_right(torture: Path) -> None:
    """Pillow converts these modes rightly; not so 16 bits (clipped) and transparency (dropped)."""
    compared = 0
    for name, expected in EXPECTED.items():
        if expected.startswith("ok") and "UnidentifiedImageError" not in name:  # those Pillow cannot read
            with Image.open(torture / name) as image:
                if image.has_transparency_data or image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"):
                    continue
                reference = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            assert np.abs(decode(torture / name, 3).astype(int) - reference).max() <= 1, name
            compared += 1
    assert compared > 90


def test_without_libjpeg_turbo_every_outcome_is_the_same(torture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "simplejpeg", None)
    for name in (name for name in EXPECTED if name.startswith("jpg__")):
        assert outcome(torture / name) == EXPECTED[name], name


def _write_table() -> None:
    warnings.simplefilter("ignore")
    files = sorted((Path(os.environ["SMALTI_TEST_DATA"]) / "torture").iterdir())
    lines = (f"{path.name}\t{outcome(path)}\n" for path in files if path.name != "MANIFEST.tsv")
    TABLE.write_text("".join(lines))


if __name__ == "__main__":
    _write_table()
