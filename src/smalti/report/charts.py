"""Charts as inline SVG, with their numbers beside them for a script of the page (`charts.js`) to zoom and to read.

Nothing here loads anything: no font, no file. Greys are the page's text colour and the series' colours are CSS
variables with a fall-back, so that one chart serves light and dark pages. Text from outside is escaped.

matplotlib takes half a second to import, so only drawing pays for it.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from smalti.report.page import spelled_out, template

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]]
"""x and y of each named line."""

PALETTE = ("#2d6bb0", "#cf4f2c", "#b98a12", "#2c8a6a", "#8757a8", "#7a756b")
"""Lapis, cinnabar, gold, malachite, amethyst, stone. The page overrides them as --tile-1 to --tile-6."""

_INK = "#010203"
"""Stands for the text colour until the SVG is written; no series has it."""

_MAX_POINTS, _MAX_TO_ZOOM = 400, 1000
"""Points that a line in a small chart shows, and has to zoom into: the file stays small however long the run was."""

_SIZE, _SMALL = (450, 250), (280, 230)
"""Width and height of charts in CSS pixels, and of those by layer; on a narrower screen they shrink."""

_MIN_SMOOTHED = 30
_ROUGH = 0.02
"""A line is noisy if it bends from point to point by more than this share of its height."""
_FAINT = 0.3
"""Opacity of a noisy line below its average."""

_ROUND_STEPS = [1, 2, 2.5, 5, 10]
"""Between ticks; nobody reads 0, 0.8, 1.6 with ease."""


def curve(series: Series, *, xlabel: str, ylabel: str, level: tuple[str, float] | None = None) -> str:
    """A line chart. A noisy line is faint, with its moving average over it; a single point is a dot.

    Args:
        series: lines by name. Values that are not finite leave a gap; of more than 400 points neighbours are averaged.
            The key below the chart gives each line's last point, of a noisy one that of its average.
        xlabel, ylabel: what the axes count, with the unit.
        level: name and height of a dashed reference line, as the unigram entropy is for the pretraining loss.

    Example:
        >>> curve({"training": ([0, 1], [2.0, 1.0])}, xlabel="step", ylabel="loss")[:21]
        '<figure class="chart"'
    """
    lines = {name: _thinned(np.array(xy, dtype=np.float64)) for name, xy in series.items()}
    noisy = {name for name, (_, y) in lines.items() if _is_noisy(y)}
    shown = {name: _smoothed(y) if name in noisy else y for name, (_, y) in lines.items()}
    with _quiet_style((xlabel, ylabel, lines)):
        figure, axes = _empty_chart(xlabel, ylabel, *_SIZE)
        for colour, (name, (x, y)) in zip(_colours(len(lines)), lines.items(), strict=True):
            if name in noisy:
                axes.plot(x, y, color=colour, alpha=_FAINT, linewidth=1.0)
            axes.plot(x, shown[name], color=colour, marker="o" if np.isfinite(y).sum() == 1 else None, clip_on=False)
        if level is not None:
            _draw_level(axes, *level, points=np.concatenate([np.zeros((2, 0)), *lines.values()], axis=1))
        svg = _svg(figure, f"{ylabel} by {xlabel}")
    numbers = _numbers(series, level) | {"xlabel": xlabel, "ylabel": ylabel, "height": _SIZE[1]}
    return _chart(svg, {name: _last(line) for name, line in shown.items()}, _SIZE[0], numbers)


def by_layer(
    rows: Sequence[tuple[str, Mapping[str, float]]], *, xlabel: str = "block", ylabel: str = "validation accuracy"
) -> str:
    """Accuracy by layer, with one line for each network (or network and pooling).

    Lines are used because bars must start at zero, which hides differences of two points of accuracy.

    Args:
        rows: for each layer its label and accuracies in [0, 1] by name; a name may be missing in some layers.
    """
    from matplotlib.ticker import FuncFormatter

    names = list(dict.fromkeys(name for _, values in rows for name in values))
    lines = {name: np.array([values.get(name, np.nan) for _, values in rows], dtype=np.float64) for name in names}
    with _quiet_style((xlabel, ylabel, lines)):
        figure, axes = _empty_chart(xlabel, ylabel, *_SMALL)
        for colour, y in zip(_colours(len(lines)), lines.values(), strict=True):
            axes.plot(np.arange(len(rows)), y, color=colour, marker="o", markersize=4.5, clip_on=False)
        every = -(-len(rows) // 13) or 1
        axes.set_xticks(range(0, len(rows), every), [label for label, _ in rows[::every]])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        svg = _svg(figure, f"{ylabel} by {xlabel}")
    places = list(range(len(rows)))
    drawn = [_line(name, places, y, number) for number, (name, y) in enumerate(lines.items())]
    labels = [label for label, _ in rows]
    numbers = {
        "lines": drawn,
        "labels": labels,
        "percent": True,
        "xlabel": xlabel,
        "ylabel": ylabel,
        "height": _SMALL[1],
    }
    keys = {name: _best(y, [f"{xlabel} {at}" for at in labels]) for name, y in lines.items()}
    return _chart(svg, keys, _SMALL[0], numbers)


def _numbers(series: Series, level: tuple[str, float] | None) -> dict[str, Any]:
    """What the script draws: of a noisy line both the line and its average, and the reference line."""
    lines, ends = list[dict[str, Any]](), set[float]()
    for number, (name, xy) in enumerate(series.items()):
        x, y = _thinned(np.array(xy, dtype=np.float64), _MAX_TO_ZOOM)
        ends |= {x[0], x[-1]} if len(x) else set()
        if _is_noisy(y):
            lines.append(_line(name, x, y, number) | {"faint": True, "key": False})
            y = _smoothed(y)
        lines.append(_line(name, x, y, number))
    if level is not None and ends:
        line = {"name": level[0], "x": [min(ends), max(ends)], "y": [level[1]] * 2, "dashed": True}
        lines.append(line)
    return {"lines": lines}


def _line(
    name: str, x: Sequence[float] | Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], number: int
) -> dict[str, Any]:
    """A line for the script: null where there is a gap."""
    values = [float(f"{value:.5g}") if np.isfinite(value) else None for value in y]
    colour = f"--tile-{number % len(PALETTE) + 1}"
    return {"name": name, "x": [float(f"{at:.7g}") for at in x], "y": values, "colour": colour, "key": True}


def _quiet_style(content: object) -> AbstractContextManager[None]:
    """Matplotlib's own defaults, whatever the user's matplotlibrc says, and then ours.

    Args:
        content: what is drawn. Names inside the SVG are hashed from it, so that two charts of a page share none.
    """
    import matplotlib.style

    ours = {
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "font.size": 11,
        "lines.linewidth": 1.6,
        "svg.fonttype": "none",
        "svg.hashsalt": repr(content),
        "text.color": _INK,
        "text.parse_math": False,  # a name may hold a dollar sign
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
    }
    return matplotlib.style.context(["default", ours])


def _empty_chart(xlabel: str, ylabel: str, width: int, height: int) -> "tuple[Figure, Axes]":
    """Axes with a base line and faint horizontal rules. Margins are fixed: the reader's font is unknown."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    axes = figure.add_axes((46 / width, 40 / height, (width - 58) / width, (height - 70) / height), facecolor="none")
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_alpha(0.45)
    axes.tick_params(length=0, pad=6)
    axes.grid(axis="y", color=_INK, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
    axes.set_xlabel(xlabel, loc="right", labelpad=4)
    figure.text(2 / width, 1 - 4 / height, ylabel, va="top", size=12.5)
    return figure, axes


def _short(value: float) -> str:
    """A number of steps, as 2500 or 20k."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _draw_level(axes: "Axes", name: str, value: float, points: Float[np.ndarray, "2 n"]) -> None:
    """A dashed line, with its name at the right end on the side where fewer points are."""
    axes.axhline(value, color=_INK, alpha=0.6, linewidth=1.1, dashes=(4, 3))
    x, y = points
    at_the_end = y[x > axes.get_xlim()[1] - 0.5 * np.diff(axes.get_xlim())]
    above = np.sum(at_the_end > value) <= np.sum(at_the_end < value)
    axes.annotate(
        f"{name} {value:.4g}",
        xy=(1, value),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
    )
    axes.margins(y=0.12)


def _thinned(line: Float[np.ndarray, "2 n"], most: int = _MAX_POINTS) -> Float[np.ndarray, "2 m"]:
    """Average neighbouring points into at most `most` groups. A group with a value that is not finite becomes a gap."""
    line = np.where(np.isfinite(line), line, np.nan)
    n = line.shape[1]
    starts = np.arange(0, n, max(1, -(-n // most)))
    return np.add.reduceat(line, starts, axis=1) / np.diff(starts, append=n)


def _is_noisy(values: Float[np.ndarray, "n"]) -> bool:
    """Whether a line goes up and down from point to point."""
    finite = values[np.isfinite(values)]
    if len(finite) < _MIN_SMOOTHED:
        return False
    height = np.subtract(*np.percentile(finite, [95, 5]))
    return bool(np.median(np.abs(np.diff(finite, 2))) > _ROUGH * height)


def _smoothed(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The moving average over about a twentieth of the points; gaps stay gaps."""
    window, finite = np.ones(max(5, len(values) // 20 | 1)), np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    count = np.convolve(finite.astype(np.float64), window, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _svg(figure: "Figure", label: str) -> str:
    """The figure as an SVG element that inherits font and colours from the page and scales with its column."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    body = drawn[drawn.index("</defs>") + len("</defs>") :]
    # A page holds many figures: group names would repeat, and its fonts are not matplotlib's.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"(<text style=\"[^\"]*?)font-family: [^;\"]*; ", r"\1", body)
    body = body.replace("xlink:href=", "href=").replace(f": {_INK}", ": currentColor")
    for number, colour in enumerate(PALETTE, 1):
        body = body.replace(f": {colour}", f": var(--tile-{number}, {colour})")
    width, height = (f"{72 * inches:g}" for inches in figure.get_size_inches())
    svg = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{body}'
    return str(spelled_out(svg))


def _chart(svg: str, keys: Mapping[str, str], width: int, numbers: Mapping[str, Any]) -> str:
    """A chart with its key below: names of the lines, each with the one number to remember."""
    named = [(_css(number), name, value) for number, (name, value) in enumerate(keys.items())]
    return template("chart.html").render(svg=svg, keys=named, width=width, numbers=json.dumps(numbers))


def _colours(count: int) -> list[str]:
    return [PALETTE[number % len(PALETTE)] for number in range(count)]


def _css(number: int) -> str:
    number %= len(PALETTE)
    return f"var(--tile-{number + 1}, {PALETTE[number]})"


def _last(values: Float[np.ndarray, "n"]) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite[-1]:.4g}" if len(finite) else ""


def _best(values: Float[np.ndarray, "n"], labels: Sequence[str]) -> str:
    if not np.isfinite(values).any():
        return ""
    best = int(np.nanargmax(values))
    return f"{100 * values[best]:.1f} % at {labels[best]}"
