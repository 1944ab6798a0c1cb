"""Pictures survive as they are, and no figure of either kind loads anything."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from smalti.functional.metrics import VOID
from smalti.report.charts import by_layer, curve
from smalti.report.pictures import (
    Card,
    atlas,
    label_colours,
    mask_overlay,
    mask_png,
    outlined,
    share_map,
    sheet,
    tile_row,
    token_colours,
    token_map,
)
from tests.report.reading import NASTY, pictures_in, texts_of


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

    def test_many_columns_are_scrolled_on_a_narrow_screen_by_keyboard_too(self, images: np.ndarray) -> None:
        four = tile_row({str(number): images for number in range(4)})
        five = tile_row({str(number): images for number in range(5)})
        assert 'class="pictures"' in four
        assert "min-width" not in four
        assert 'class="pictures many" tabindex="0"' in five
        assert "min-width: 350px" in five

    def test_side_by_side_grids_keep_the_order(self, images: np.ndarray) -> None:
        assert tile_row({"original": images}, across=2).count('class="tiles"') == 2
        assert len(pictures_in(tile_row({"original": images}, across=2))) == 3

    def test_columns_of_different_lengths_are_refused(self, images: np.ndarray) -> None:
        with pytest.raises(ValueError, match="shorter"):
            tile_row({"original": images, "masked": images[:2]})

    def test_no_images_no_pictures(self, images: np.ndarray) -> None:
        assert "<img" not in tile_row({"original": images[:0]})


def test_what_is_hidden_more_often_is_darker() -> None:
    shares = share_map(np.array([[[0.0, 0.25, 1.0]]]))
    assert shares.shape == (1, 1, 3, 1)
    assert shares.ravel().tolist() == [232, 184, 40]
    assert share_map(np.array([[[False, True]]])).ravel().tolist() == [232, 40]


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


class TestTokenMap:
    def test_a_number_has_one_colour_everywhere_and_neighbours_differ(self) -> None:
        ids = np.array([[[0, 1], [2, 0]], [[7, 2], [1, 7]]])
        colours = token_map(ids)
        assert colours.dtype == np.uint8
        by_number = {number: colours[ids == number] for number in (0, 1, 2, 7)}
        assert all((found == found[0]).all() for found in by_number.values())
        near = token_map(np.arange(200).reshape(1, 1, 200))[0, 0].astype(int)
        assert np.abs(np.diff(near, axis=0)).sum(1).min() > 100
        assert len(np.unique(near, axis=0)) == 200

    def test_hues_are_those_of_the_colour_circle(self) -> None:
        """Number 0 is a red: its green and blue are equal and lower."""
        red, green, blue = token_map(np.zeros((1, 1, 1), np.int64))[0, 0, 0].tolist()
        assert green == blue < red

    def test_a_token_is_as_large_as_its_patch(self) -> None:
        large = token_map(np.array([[[3, 4]]]), stride=4)
        assert large.shape == (1, 4, 8, 3)
        assert (large[0, :, :4] == token_map(np.array([[[3]]]))[0, 0, 0]).all()


class TestSheet:
    def test_every_picture_lies_in_its_place(self, images: np.ndarray) -> None:
        painted = sheet({"original": images, "small and grey": images[:, ::2, ::2, :1]}, scale=2)
        assert painted.shape == (3 * (16 + 4) + 4, 2 * (24 + 4) + 4, 3)
        np.testing.assert_array_equal(painted[24:40, 4:28], images[1].repeat(2, 0).repeat(2, 1))
        np.testing.assert_array_equal(painted[44:60, 32:56, 2], images[2, ::2, ::2, 0].repeat(4, 0).repeat(4, 1))
        assert (painted[:4] == 255).all()

    def test_columns_of_different_lengths_are_refused(self, images: np.ndarray) -> None:
        with pytest.raises(ValueError, match="shorter"):
            sheet({"original": images, "masked": images[:2]})


def every_figure() -> list[str]:
    images = np.full((1, 4, 4, 3), 7, dtype=np.uint8)
    return [
        curve({NASTY: ([0, 1], [2, 1])}, xlabel=NASTY, ylabel=NASTY, level=(NASTY, 1.5)),
        by_layer([(NASTY, {NASTY: 0.5})], xlabel=NASTY, ylabel=NASTY),
        tile_row({NASTY: images}, captions=[NASTY]),
        atlas([Card(0, 1.0, images[0], images)], [1, 0]),
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


def test_tokens_have_the_mean_colour_of_all_patches_of_their_number() -> None:
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    pictures[0, :2, :2], pictures[1, 2:, 2:] = (100, 0, 0), (0, 50, 0)
    ids = np.array([[[7, 1], [1, 1]], [[1, 1], [1, 7]]])
    painted = token_colours(ids, pictures)
    assert painted.shape == (2, 4, 4, 3)
    assert (painted[0, :2, :2] == painted[1, 2:, 2:]).all()
    assert painted[0, 0, 0].tolist() == [50, 25, 0]
    assert painted[0, 3, 3].tolist() == [0, 0, 0]


def test_outlines_are_on_both_sides_of_an_edge_and_neutral_classes_have_none() -> None:
    label_map = np.zeros((6, 6), np.uint8)
    label_map[2:4, 2:4], label_map[5, 5] = 1, VOID
    image = np.full((6, 6, 3), 90, np.uint8)
    drawn = outlined(image, label_map, (0, VOID))
    changed = (drawn != image).any(-1)
    assert changed[2:4, 2:4].all()
    assert changed.sum() == 4, "neither the background nor void"
    assert (drawn[2, 2] == label_colours(np.full((1, 1), 1, np.uint8), VOID)[0, 0]).all()
    assert (outlined(image, label_map, (VOID,)) != image).any(-1).sum() > 4


def test_a_mask_keeps_ids_and_the_colours_of_their_classes() -> None:
    label_map, ids = np.array([[0, 1], [2, 1]], np.uint8), np.array([1, 5, 9], np.uint8)
    mask = Image.open(io.BytesIO(mask_png(label_map, ids)))
    assert np.array(mask).tolist() == [[1, 5], [9, 5]]
    assert (np.array(mask.convert("RGB")) == label_colours(label_map, VOID)).all()
