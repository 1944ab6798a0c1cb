"""Charts: what is drawn, where, and nothing that is loaded."""

import re

import matplotlib
import numpy as np
import pytest

from smalti.report import charts
from smalti.report.charts import by_layer, curve
from tests.report.reading import svg_of, texts_of


def points_of(html: str, number: int) -> list[tuple[float, float]]:
    colour = f"stroke: var(--tile-{number}"
    path = next(p for p in svg_of(html).iter("path") if colour in p.get("style", "") and p.get("d", "").startswith("M"))
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]


class TestCharts:
    def test_curve_goes_where_the_numbers_go(self) -> None:
        points = points_of(curve({"loss": ([0, 1, 2], [3.0, 1.0, 2.0])}, xlabel="step", ylabel="loss"), 1)
        (x0, y0), (x1, y1), (x2, y2) = points
        assert x1 - x0 == pytest.approx(x2 - x1)
        assert y1 - y0 == pytest.approx(2 * (y1 - y2))  # downwards on the screen
        assert y1 > y2 > y0

    def test_labels_are_text_and_the_level_is_named(self) -> None:
        html = curve({"a": ([0, 1], [5, 3])}, xlabel="step", ylabel="nats", level=("unigram entropy", 4.2148))
        assert {"step", "nats", "unigram entropy 4.215"} <= set(texts_of(html))

    @pytest.mark.parametrize(("ends_at", "side"), [(3.0, -1), (6.0, 1)])
    def test_the_level_is_named_on_the_emptier_side(self, ends_at: float, side: int) -> None:
        html = curve({"a": ([0, 1, 2], [5, ends_at, ends_at])}, xlabel="", ylabel="", level=("level", 4.5))
        label = next(t for t in svg_of(html).iter("text") if (t.text or "").startswith("level"))
        dashed = next(p for p in svg_of(html).iter("path") if "dasharray" in p.get("style", ""))
        line_y = float(re.findall(r"M \S+ (\S+)", dashed.get("d", ""))[0])
        assert np.sign(float(label.get("y", "nan")) - line_y) == side

    def test_a_value_that_is_not_finite_leaves_a_gap(self) -> None:
        html = curve({"a": ([0, 1, 2, 3, 4], [1, 2, np.nan, 2, 1])}, xlabel="step", ylabel="loss")
        path = next(p for p in svg_of(html).iter("path") if "stroke: var(--tile-1" in p.get("style", ""))
        assert path.get("d", "").count("M") == 2

    def test_long_runs_are_thinned_to_means(self) -> None:
        line = charts._thinned(np.array([np.arange(1000.0), np.tile([0.0, 1.0, 2.0, 1.0], 250)]))
        assert line.shape == (2, 334)
        assert line[:, 0].tolist() == [1.0, 1.0]
        assert line[:, -1].tolist() == [999.0, 1.0]

    def test_a_noisy_line_is_faint_with_its_average_over_it(self) -> None:
        x, noise = np.arange(100), np.tile([0.0, 1.0], 50)
        html = curve({"loss": (x.tolist(), (5 - x / 50 + noise).tolist())}, xlabel="step", ylabel="loss")
        styles = [p.get("style", "") for p in svg_of(html).iter("path") if "stroke: var(--tile-1" in p.get("style", "")]
        assert ["stroke-opacity: 0.3" in style for style in styles] == [True, False]
        (value,) = re.findall(r"</i>loss <b>(\S+)</b>", html)
        assert float(value) == pytest.approx(5 - 98 / 50 + 0.5, abs=0.25)

    def test_a_smooth_line_and_a_short_one_are_drawn_once(self) -> None:
        x = np.arange(100)
        for y in (np.exp(-x / 10), x / 100):
            html = curve({"loss": (x.tolist(), y.tolist())}, xlabel="step", ylabel="loss")
            assert sum("stroke: var(--tile-1" in p.get("style", "") for p in svg_of(html).iter("path")) == 1

    def test_the_average_keeps_gaps_and_is_that_of_what_is_there(self) -> None:
        smooth = charts._smoothed(np.array([1.0, 3.0, np.nan, 5.0, 7.0]))
        assert np.isnan(smooth).tolist() == [False, False, True, False, False]
        assert smooth[[0, 1, 3, 4]].tolist() == [2.0, 3.0, 5.0, 6.0]

    def test_one_step_is_a_dot(self) -> None:
        def dots(y: list[float]) -> int:
            return sum(
                "use" in element.tag
                for element in svg_of(curve({"a": (range(len(y)), y)}, xlabel="", ylabel="")).iter()
            )

        assert dots([4.0]) == 1 + dots([4.0, 5.0])

    @pytest.mark.parametrize("series", [{}, {"empty": ([], [])}, {"one": ([3], [4])}])
    def test_next_to_nothing_can_be_drawn(self, series: charts.Series) -> None:
        assert svg_of(curve(series, xlabel="step", ylabel="loss", level=("level", 1.0))) is not None

    def test_the_key_names_each_line_and_its_last_finite_value(self) -> None:
        html = curve({"a": ([0, 1], [2, 1.23456]), "b": ([0, 1], [7, np.nan])}, xlabel="", ylabel="")
        assert re.findall(r"</i>(\w) <b>(\S+)</b>", html) == [("a", "1.235"), ("b", "7")]

    def test_by_layer_names_the_best_layer_and_leaves_missing_ones_out(self) -> None:
        rows = [("embed", {"random": 0.5}), ("1", {"random": 0.4, "trained": 0.7}), ("2", {"trained": 0.6})]
        html = by_layer(rows)
        assert "random <b>50.0 % at block embed</b>" in html
        assert "trained <b>70.0 % at block 1</b>" in html
        assert {"embed", "1", "2", "block"} <= set(texts_of(html))
        assert len(points_of(html, 2)) == 2

    def test_colours_and_greys_come_from_the_page(self) -> None:
        html = curve({"a": ([0, 1], [5, 3])}, xlabel="step", ylabel="nats", level=("level", 4.0))
        assert charts._INK not in html
        assert "currentColor" in html
        assert "#000000" not in html
        assert "#ffffff" not in html

    def test_drawing_leaves_matplotlib_as_it_was(self) -> None:
        before = dict(matplotlib.rcParams)
        curve({"a": ([0, 1], [5, 3])}, xlabel="step", ylabel="nats")
        assert dict(matplotlib.rcParams) == before

    def test_a_users_matplotlib_settings_do_not_matter(self) -> None:
        def drawn() -> str:
            return curve({"a": ([0, 1], [5, 3])}, xlabel="step", ylabel="nats", level=("level", 4.0))

        expected = drawn()
        with matplotlib.rc_context({"svg.fonttype": "path", "lines.linewidth": 9, "axes.facecolor": "red"}):
            assert drawn() == expected
