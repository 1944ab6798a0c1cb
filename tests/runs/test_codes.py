"""What codes stand for: `smalti show TOKENIZER DATA --codes N`."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import UsageError
from smalti.runs import show
from smalti.runs.codes import places_of_codes
from smalti.runs.model_pictures import Show, see


def of(model: Path, *images: Path, out: str = "codes.html", codes: int = 3) -> Show:
    return Show(str(model), tuple(map(str, images)), out, precision="fp32", device="cpu", codes=codes)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 5))
def test_places_have_their_code_one_in_an_image_and_detail(seed: int, count: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    ids, varied = rng.integers(0, 6, (count, 3, 2)), rng.random((count, 3, 2)) < 0.7
    found = places_of_codes(ids, varied, most)
    frequency = np.bincount(ids[varied], minlength=6)
    shown = [frequency[code] for code in found]
    assert shown == sorted(shown, reverse=True)
    assert len(found) <= most
    assert bool(found) == bool(varied.any())
    for code, places in found.items():
        images, rows, columns = places.T
        assert (ids[images, rows, columns] == code).all()
        assert varied[images, rows, columns].all()
        assert len(set(images.tolist())) == len(images)
        for image, row, column in places.tolist():
            earlier = (ids[image] == code) & varied[image]
            assert not earlier.ravel()[: row * 2 + column].any(), "the first of its image"


def test_codes_that_many_images_have_go_before_others() -> None:
    ids = np.zeros((8, 1, 3), int)
    ids[0, 0, 1:] = 7
    ids[:, 0, 2] = 5
    assert [(code, len(places)) for code, places in places_of_codes(ids, np.ones_like(ids, bool), 9).items()] == [
        (0, 6),
        (5, 6),
    ]


def test_a_page_has_a_row_for_each_code(runs: Path, tmp_path: Path) -> None:
    seen = see(of(runs / "tokenizer", runs / "photos"))
    assert list(seen.columns)[:2] == ["decoded", "example 1"]
    assert len(seen.captions) == len(seen.columns["decoded"]) <= 3
    assert all(caption.startswith("code ") for caption in seen.captions)
    example, side = seen.columns["example 1"], seen.columns["decoded"].shape[1]
    assert example.shape[1:] == (side, side, 3)
    assert (example == (255, 64, 0)).all(-1).any((1, 2)).all(), "each has a frame"
    for name in ("codes.html", "codes.png"):
        assert show.main(of(runs / "tokenizer", runs / "photos", out=str(tmp_path / name)))["images"] == len(
            seen.captions
        )
    with Image.open(tmp_path / "codes.png") as picture:
        assert picture.width > side


def test_codes_need_a_tokenizer_and_detail(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--codes for .*beit; give the run of its tokenizer"):
        see(of(runs / "beit", runs / "photos"))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    with pytest.raises(UsageError, match="every patch is of a single colour"):
        see(of(runs / "tokenizer", tmp_path / "red.png"))
    with pytest.raises(UsageError, match="-1 codes"):
        of(runs / "tokenizer", runs / "photos", codes=-1)
