"""Plots of the studies, for their pages."""

from collections.abc import Mapping
from io import BytesIO
from itertools import cycle
from typing import TypeAlias

import matplotlib
from matplotlib.figure import Figure

from smalti.report.charts import PALETTE

Lines: TypeAlias = Mapping[str, Mapping[float, float]]
"""Points x -> y of each line, by name."""

_GREY = "#444444"


def log_lines(lines: Lines, xlabel: str, ylabel: str, beside: str) -> str:
    """Lines over a logarithmic x axis with a tick at each of their points, as SVG; the name of a line is at its end.

    The line `beside`, if there is one, is grey and dashed: what the others are compared with.
    """
    with matplotlib.rc_context({"svg.hashsalt": ylabel, "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6.4, 3.6), facecolor="white")
        axes = figure.add_axes((0.09, 0.15, 0.62, 0.75))
        axes.set_xscale("log")
        palette = cycle(PALETTE)
        colours = [_GREY if name == beside else next(palette) for name in lines]
        for points, colour in zip(lines.values(), colours, strict=True):
            x, y = zip(*sorted(points.items()), strict=True)
            axes.plot(x, y, color=colour, marker="o", markersize=4, linestyle="--" if colour == _GREY else "-")
        heights = _apart([points[max(points)] for points in lines.values()], axes.get_ylim())
        for name, height, colour in zip(lines, heights, colours, strict=True):
            axes.annotate(name, (1.02, height), xycoords=axes.get_yaxis_transform(), color=colour, va="center")
        ticks = sorted({x for points in lines.values() for x in points})
        axes.set_xticks(ticks, [f"{x:,g}" for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel(xlabel)
        axes.set_title(ylabel, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.2)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().decode()


def _apart(heights: list[float], limits: tuple[float, float]) -> list[float]:
    """Heights of names beside the ends of their lines, moved up where they would cover each other."""
    least = 0.055 * (limits[1] - limits[0])
    placed = dict[int, float]()
    last = float("-inf")
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        last = max(heights[index], last + least)
        placed[index] = last
    return [placed[index] for index in range(len(heights))]
