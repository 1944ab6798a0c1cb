"""Colours of values: those of matplotlib; and pictures that carry their headings, captions and scales."""

import matplotlib
import numpy as np
import pytest

from smalti.report.figure import figure
from smalti.report.heat_maps import ColourBar, colours, component_colours, heat_map
from smalti.report.pictures import sheet
from tests.report.reading import NASTY, pictures_in


@pytest.mark.parametrize("ramp", ["viridis", "inferno"])
def test_ramps_are_those_of_matplotlib(ramp: str) -> None:
    values = np.linspace(0, 1, 64)
    theirs = 255 * matplotlib.colormaps[ramp](values)[:, :3]
    assert np.abs(colours(values, ramp) - theirs).max() < 8


def test_a_heat_map_is_as_large_as_its_image_and_pale_where_there_is_no_value() -> None:
    images = np.full((2, 8, 12, 3), 100, np.uint8)
    values = np.zeros((2, 2, 3))
    values[0, 0, 0], values[1, 1, 2], values[0, 1, 1] = 2.0, 1.0, np.nan
    shared, own = heat_map(values, 2.0, "viridis", images), heat_map(values, None, "viridis", images)
    last = colours(np.ones(()), "viridis")
    assert (shared[0, :4, :4] == last).all()
    assert (shared[1, 4:, 8:] == colours(np.full((), 0.5), "viridis")).all()
    assert (own[1, 4:, 8:] == last).all(), "each map has a scale of its own"
    pale = shared[0, 4:, 4:8]
    assert (pale == pale[0, 0, 0]).all()
    assert pale[0, 0, 0] > 100
    nothing = heat_map(np.zeros((1, 2, 3)), None, "viridis", images[:1])
    assert (nothing == colours(np.zeros(()), "viridis")).all()


def test_components_are_on_one_scale_for_all_images() -> None:
    scores = np.zeros((2, 2, 2, 3))
    scores[0, 0, 0, 0], scores[1, 1, 1, 0], scores[..., 1] = 5.0, -5.0, 3.0
    painted = component_colours(scores, 8, 4)
    assert painted.shape == (2, 8, 4, 3)
    assert (painted[0, :4, :2, 0] == 255).all()
    assert (painted[1, 4:, 2:, 0] == 0).all()
    assert (painted[..., 1] == 128).all(), "a component without variance is in the middle"


def test_a_figure_is_a_sheet_with_lines_of_text() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    columns = {"original": images, "grey": images[..., :1]}
    bar = ColourBar("entropy", "0", "9 nats")
    drawn, plain = figure(columns, 4, ["a.png", NASTY * 9], [bar]), sheet(columns, 4)
    assert drawn.shape == (2 * (32 + 8) + 4 * 28, plain.shape[1], 3)
    np.testing.assert_array_equal(drawn[28:68], plain[:40])
    assert len(np.unique(drawn[:28].reshape(-1, 3), axis=0)) > 2, "a heading"
    assert (drawn[68:96, -4:] == 255).all()
    assert (drawn[-28:, :, 0] != drawn[-28:, :, 2]).any(), "a scale in colours"
    assert figure(columns, 4).shape == (2 * (32 + 8) + 28, plain.shape[1], 3)


def test_a_colour_bar_of_a_page_is_escaped_and_shows_its_ends() -> None:
    html = ColourBar(NASTY, "0", NASTY).html()
    assert "<script" not in html
    (scale,) = pictures_in(html)
    assert scale[0, 0].tolist() == [0x44, 0x01, 0x54]
    assert scale[0, -1].tolist() == [0xFD, 0xE7, 0x25]
