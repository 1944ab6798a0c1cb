"""Pictures survive as they are, and no figure of either kind loads anything."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from smalti.report.charts import by_layer, curve
from smalti.report.pictures import atlas, mask_overlay, tile_row
from tests.report.reading import NASTY, texts_of


def pictures_in(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)


class TestTiles:
    def test_pictures_decode_to_the_same_pixels_row_by_row(self, images: np.ndarray) -> None:
        views = tile_row({"original": images, "grey": images[..., :1]})
        expected = [pixels for image in images for pixels in (image, image[..., 0])]
        for shown, given in zip(pictures_in(views), expected, strict=True):
            np.testing.assert_array_equal(shown, given)

    def test_headings_and_alternative_texts(self, images: np.ndarray) -> None:
        html = tile_row({"original": images, "masked": images}, captions=["a.png", "b.png", "c.png"])
        assert re.findall(r"<b>(.*?)</b>", html) == ["original", "masked"]
        assert re.findall(r'alt="(.*?)"', html)[:3] == ["original, a.png", "masked, a.png", "original, b.png"]
        assert "repeat(2, minmax(0, 48px))" in html

    def test_side_by_side_grids_keep_the_order(self, images: np.ndarray) -> None:
        assert tile_row({"original": images}, across=2).count('class="tiles"') == 2
        assert len(pictures_in(tile_row({"original": images}, across=2))) == 3

    def test_columns_of_different_lengths_are_refused(self, images: np.ndarray) -> None:
        with pytest.raises(ValueError, match="shorter"):
            tile_row({"original": images, "masked": images[:2]})

    def test_no_images_no_pictures(self, images: np.ndarray) -> None:
        assert "<img" not in tile_row({"original": images[:0]})


class TestMaskOverlay:
    def test_hidden_patches_are_grey_and_the_rest_is_untouched(self, images: np.ndarray) -> None:
        mask = np.zeros((3, 6), dtype=np.bool_)  # 2 rows of 3 patches
        mask[1, 2] = mask[2, 3] = True
        shown = mask_overlay(images, mask, patch=4)
        np.testing.assert_array_equal(shown[0], images[0])
        for number, rows, columns in [(1, slice(0, 4), slice(8, 12)), (2, slice(4, 8), slice(0, 4))]:
            block = shown[number, rows, columns]
            assert (block[1:, 1:] == 128).all()
            assert (block[0] > 128).all()
            assert (block[:, 0] > 128).all()
            rest = np.ones((8, 12), dtype=np.bool_)
            rest[rows, columns] = False
            np.testing.assert_array_equal(shown[number][rest], images[number][rest])

    def test_the_images_given_are_not_painted(self, images: np.ndarray) -> None:
        before = images.copy()
        mask_overlay(images, np.ones((3, 6), dtype=np.bool_), patch=4)
        np.testing.assert_array_equal(images, before)

    def test_one_channel_stays_one_channel(self, images: np.ndarray) -> None:
        assert mask_overlay(images[..., :1], np.ones((3, 6), dtype=np.bool_), patch=4).shape == (3, 8, 12, 1)


class TestAtlas:
    def test_the_most_frequent_come_first_with_their_frequency(self) -> None:
        prototypes = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(2, 1).repeat(2, 2)
        html = atlas(prototypes, [10, 0, 70, 20])
        assert [int(picture[0, 0]) for picture in pictures_in(html)] == [2, 3, 0, 1]
        assert re.findall(r'title="(.*?)"', html) == [
            "token 2: 70 %",
            "token 3: 20 %",
            "token 0: 10 %",
            "token 1: does not occur",
        ]
        assert "3 of 4 visual tokens occur; the most frequent takes 70 % of the positions." in html

    def test_at_most_so_many(self) -> None:
        html = atlas(np.zeros((9, 2, 2, 3), dtype=np.uint8), [1] * 9, most=4)
        assert len(pictures_in(html)) == 4
        assert "The 4 most frequent are shown." in html

    def test_a_codebook_nobody_used(self) -> None:
        assert "0 of 2 visual tokens occur" in atlas(np.zeros((2, 2, 2, 1), dtype=np.uint8), [0, 0])

    def test_a_count_for_each_prototype(self) -> None:
        with pytest.raises(ValueError, match="1 counts for 2 prototypes"):
            atlas(np.zeros((2, 2, 2, 1), dtype=np.uint8), [0])


def every_figure() -> list[str]:
    images = np.full((1, 4, 4, 3), 7, dtype=np.uint8)
    return [
        curve({NASTY: ([0, 1], [2, 1])}, xlabel=NASTY, ylabel=NASTY, level=(NASTY, 1.5)),
        by_layer([(NASTY, {NASTY: 0.5})], xlabel=NASTY, ylabel=NASTY),
        tile_row({NASTY: images}, captions=[NASTY]),
        atlas(images, [1]),
    ]


def test_names_from_outside_are_escaped() -> None:
    for html in every_figure():
        assert "<script" not in html
    assert NASTY in texts_of(every_figure()[0])


def test_nothing_is_loaded() -> None:
    for html in every_figure():
        assert "http" not in html
        assert "<style" not in html
        assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', html))
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)', html))


def test_the_same_numbers_give_the_same_characters() -> None:
    assert every_figure() == every_figure()
