"""Figures as HTML fragments: charts as inline SVG, pictures as data URIs.

Nothing here loads anything: no script, no font, no file. Greys are the page's text colour and the series' colours are
CSS variables with a fall-back, so that one figure serves light and dark pages. Text from outside is escaped.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape

import matplotlib.style
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

Series = Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]]
"""x and y of each named line."""

Picture = UInt8[np.ndarray, "_H _W _C"]
"""C is 1 or 3. Pictures side by side need not agree in any axis."""

PALETTE = ("#2d6bb0", "#cf4f2c", "#b98a12", "#2c8a6a", "#8757a8", "#7a756b")
"""Lapis, cinnabar, gold, malachite, amethyst, stone. The page overrides them as --tile-1 to --tile-6."""

_INK = "#010203"
"""Stands for the text colour until the SVG is written; no series has it."""

_MOST_POINTS = 400
"""A line in a small chart shows no more; the file stays small however long the run was."""

_ROUND_STEPS = [1, 2, 2.5, 5, 10]
"""Between ticks; nobody reads 0, 0.8, 1.6 with ease."""

_HIDDEN, _EDGE = 128, 152
"""Grey levels of a hidden patch and of its edge."""


# Charts


def curve(
    series: Series,
    *,
    xlabel: str,
    ylabel: str,
    level: tuple[str, float] | None = None,
    log_y: bool = False,
    width: int = 450,
    height: int = 250,
) -> str:
    """A line chart.

    Args:
        series: lines by name. Values that are not finite leave a gap; of more than 400 points neighbours are averaged.
            The key below the chart gives each line's last point.
        xlabel, ylabel: what the axes count, with the unit.
        level: name and height of a dashed reference line, as the unigram entropy is for the pretraining loss.
        log_y: logarithmic y axis.
        width, height: size in CSS pixels; on a narrower screen the chart shrinks.

    Example:
        >>> curve({"training": ([0, 1], [2.0, 1.0])}, xlabel="step", ylabel="loss")[:21]
        '<figure class="chart"'
    """
    lines = {name: _thinned(np.array(xy, dtype=np.float64)) for name, xy in series.items()}
    with _quiet_style((xlabel, ylabel, lines)):
        figure, axes = _empty_chart(xlabel, ylabel, width, height)
        if log_y:
            axes.set_yscale("log")
        for colour, (x, y) in zip(_colours(len(lines)), lines.values(), strict=True):
            axes.plot(x, y, color=colour)
        if level is not None:
            _draw_level(axes, *level, points=np.concatenate([np.zeros((2, 0)), *lines.values()], axis=1))
        svg = _svg(figure, f"{ylabel} by {xlabel}")
    return _chart(svg, {name: _last(line[1]) for name, line in lines.items()}, width)


def by_layer(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    xlabel: str = "layer",
    ylabel: str = "validation accuracy",
    width: int = 450,
    height: int = 250,
) -> str:
    """Accuracy by layer, one line a network (or network and pooling).

    Lines and not bars, for bars must start at zero, where two points of accuracy cannot be seen.

    Args:
        rows: for each layer its label and accuracies in [0, 1] by name; a name may be missing in some layers.
        xlabel, ylabel: what the axes show.
        width, height: size in CSS pixels.
    """
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    lines = {name: np.array([values.get(name, np.nan) for _, values in rows], dtype=np.float64) for name in names}
    with _quiet_style((xlabel, ylabel, lines)):
        figure, axes = _empty_chart(xlabel, ylabel, width, height)
        for colour, y in zip(_colours(len(lines)), lines.values(), strict=True):
            axes.plot(np.arange(len(rows)), y, color=colour, marker="o", markersize=4.5, clip_on=False)
        every = -(-len(rows) // 13) or 1
        axes.set_xticks(range(0, len(rows), every), [label for label, _ in rows[::every]])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        svg = _svg(figure, f"{ylabel} by {xlabel}")
    return _chart(svg, {name: _best(y, [f"{xlabel} {label}" for label, _ in rows]) for name, y in lines.items()}, width)


def _quiet_style(content: object) -> AbstractContextManager[None]:
    """Matplotlib's own defaults, whatever the user's matplotlibrc says, and then ours.

    Args:
        content: what is drawn. Names inside the SVG are hashed from it, so that two charts of a page share none.
    """
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


def _empty_chart(xlabel: str, ylabel: str, width: int, height: int) -> tuple[Figure, Axes]:
    """A base line and faint horizontal rules. Margins are fixed: the reader's font is not known here."""
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


def _draw_level(axes: Axes, name: str, value: float, points: Float[np.ndarray, "2 n"]) -> None:
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


def _thinned(line: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, "2 m"]:
    """Means of runs of neighbours, at most 400 of them. A run with a value that is not finite becomes a gap."""
    line = np.where(np.isfinite(line), line, np.nan)
    n = line.shape[1]
    starts = np.arange(0, n, max(1, -(-n // _MOST_POINTS)))
    return np.add.reduceat(line, starts, axis=1) / np.diff(starts, append=n)


def _svg(figure: Figure, label: str) -> str:
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
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">{body}'


def _chart(svg: str, keys: Mapping[str, str], width: int) -> str:
    """A chart with its key below: names of the lines, each with the one number to remember."""
    items = "".join(
        f'<span class="key"><i style="background: {_css(number)}"></i>{escape(name)} <b>{escape(value)}</b></span>'
        for number, (name, value) in enumerate(keys.items())
    )
    return f'<figure class="chart" style="width: {width}px">{svg}<figcaption>{items}</figcaption></figure>\n'


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


# Pictures


def tile_row(
    columns: Mapping[str, UInt8[np.ndarray, "n _H _W _C"]],
    *,
    scale: int = 4,
    captions: Sequence[str] = (),
    across: int = 1,
) -> str:
    """A grid of pictures: a row for each image, a column for each way to see it.

    Args:
        columns: the pictures by heading, as original | masked | tokenizer's view | predicted; C is 1 or 3. All columns
            are shown as wide as the first one, so a tokenizer's smaller view may stand beside the image.
        scale: screen pixels for a pixel of the first column. Above 1, pixels stay squares.
        captions: a line below each row, as a file name or a class; none or n of them.
        across: how many grids stand side by side where the page is wide enough; the rows fill them in order.

    Raises:
        ValueError: columns (or captions) of different lengths.
    """
    rows = list(zip(*columns.values(), strict=True))
    lines = list(captions) or [""] * len(rows)
    labels = [caption or f"image {number}" for number, caption in enumerate(lines, 1)]
    pixels = scale * (rows[0][0].shape[1] if rows else 0)
    cells = [_row(columns, row, line, label, scale) for row, line, label in zip(rows, lines, labels, strict=True)]
    head = "".join(f"<b>{escape(heading)}</b>" for heading in columns)
    each = max(1, -(-len(cells) // across))
    style = f"grid-template-columns: repeat({len(columns)}, minmax(0, {pixels}px))"
    grids = "".join(
        f'<div class="tiles" style="{style}">{head}{"".join(cells[start : start + each])}</div>'
        for start in range(0, len(cells), each)
    )
    return f'<figure class="pictures">{grids}</figure>\n'


def _row(headings: Iterable[str], pictures: Iterable[Picture], line: str, label: str, scale: int) -> str:
    cells = (_img(picture, f"{heading}, {label}", scale) for heading, picture in zip(headings, pictures, strict=True))
    return "".join(cells) + (f"<p>{escape(line)}</p>" if line else "")


def mask_overlay(
    images: UInt8[np.ndarray, "n H W C"], mask: Bool[np.ndarray, "n N"], patch: int
) -> UInt8[np.ndarray, "n H W C"]:
    """Copies of the images with their hidden patches painted grey, each with a lighter edge at its top and left.

    Args:
        images: H and W are multiples of `patch`.
        mask: True where a patch is hidden, row-major.
        patch: side of a patch in pixels.
    """
    _, height, width, _ = images.shape
    grid = mask.reshape(-1, height // patch, width // patch)
    hidden = grid.repeat(patch, axis=1).repeat(patch, axis=2)
    thin = max(1, patch // 16)
    edge = (np.arange(height)[:, None] % patch < thin) | (np.arange(width) % patch < thin)
    paint = np.where(edge, _EDGE, _HIDDEN).astype(np.uint8)
    painted: UInt8[np.ndarray, "n H W C"] = np.where(hidden[..., None], paint[..., None], images)
    return painted


def atlas(prototypes: UInt8[np.ndarray, "V p p C"], counts: Sequence[int], *, most: int = 256, size: int = 28) -> str:
    """The codebook: the picture of each visual token, the most frequent first, its frequency as the tooltip.

    Args:
        prototypes: what each token decodes to, C is 1 or 3.
        counts: how often each token occurs.
        most: how many are shown. Tokens that do not occur are pale.
        size: side of a picture on the screen in CSS pixels.

    Raises:
        ValueError: not one count for each prototype.
    """
    frequency = np.asarray(counts, dtype=np.float64)
    if len(frequency) != len(prototypes):
        raise ValueError(f"{len(frequency)} counts for {len(prototypes)} prototypes")
    share = frequency / max(frequency.sum(), 1)
    order = np.argsort(-share, kind="stable")[:most]
    tiles = "".join(_token(prototypes[token], int(token), float(share[token])) for token in order)
    style = f"grid-template-columns: repeat(auto-fill, {size}px)"
    return (
        f'<figure class="pictures"><div class="atlas" style="{style}">{tiles}</div>'
        f"<figcaption>{_codebook_line(share, len(order))}</figcaption></figure>\n"
    )


def _token(picture: Picture, token: int, share: float) -> str:
    title = f"token {token}: {100 * share:.2g} %" if share else f"token {token}: does not occur"
    unused = "" if share else ' class="unused"'
    return f'<img{unused} title="{title}" alt="{title}" src="{_data_uri(picture)}">'


def _codebook_line(share: Float[np.ndarray, "V"], shown: int) -> str:
    used = f"{np.count_nonzero(share)} of {len(share)} visual tokens occur"
    top = f"the most frequent takes {100 * share.max(initial=0):.2g} % of the positions"
    return f"{used}; {top}." + (f" The {shown} most frequent are shown." if shown < len(share) else "")


def _img(picture: Picture, alt: str, scale: int) -> str:
    sharp = ' class="sharp"' if scale > 1 else ""
    return f'<img{sharp} alt="{escape(alt)}" src="{_data_uri(picture)}">'


def _data_uri(picture: Picture) -> str:
    """A PNG inside the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
