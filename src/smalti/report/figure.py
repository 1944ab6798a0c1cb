"""Pictures as one picture that explains itself: headings above its columns, captions below its rows, colour bars."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from smalti.report.heat_maps import ColourBar
from smalti.report.page import spelled_out
from smalti.report.pictures import GAP, Picture, sheet

_TEXT, _LINE, _INK = 18, 28, (107, 104, 95)
"""Height of letters and of a line in pixels; their colour."""
_MAX_LETTERS = 400
_BAR = (160, 12)
"""Width and height of a colour bar in pixels."""


def figure(
    columns: Mapping[str, UInt8[np.ndarray, "n _H _W _C"]],
    scale: int = 1,
    captions: Sequence[str] = (),
    bars: Sequence[ColourBar] = (),
) -> Picture:
    """A sheet with headings, a caption below each row, and colour bars at the bottom.

    Args:
        scale: pixels for a pixel of the first column.
        captions: none, or one for each image.
    """
    first = next(iter(columns.values()))
    column, width = scale * first.shape[2] + GAP, len(columns) * (scale * first.shape[2] + GAP) + GAP
    strips = [_texts({GAP + number * column: heading for number, heading in enumerate(columns)}, column - GAP, width)]
    for number in range(len(first)):
        strips.append(sheet({heading: pictures[number : number + 1] for heading, pictures in columns.items()}, scale))
        if captions:
            strips.append(_texts({GAP: captions[number]}, width - 2 * GAP, width))
    strips += [_bar(bar, width) for bar in bars]
    return np.concatenate(strips)


def _texts(places: Mapping[int, str], room: int, width: int) -> Picture:
    """One line with texts that begin at these pixels; each is cut where it needs more than `room`."""
    canvas = Image.new("RGB", (width, _LINE), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    for left, text in places.items():
        shown = str(spelled_out(text))[:_MAX_LETTERS]
        while len(shown) > 1 and pen.textlength(shown, font) > room:
            shown = shown[:-2] + "…"
        pen.text((left, _LINE // 2), shown, _INK, font, anchor="lm")
    return np.asarray(canvas)


def _bar(bar: ColourBar, width: int) -> Picture:
    """A line with the name, the scale and the texts at its ends."""
    pen, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(_TEXT)
    left = round(pen.textlength(f"{bar.name}  {bar.low}  ", font)) + GAP
    line = _texts({GAP: f"{bar.name}  {bar.low}", left + _BAR[0] + 12: bar.high}, width, width).copy()
    top, right = (_LINE - _BAR[1]) // 2, min(left + _BAR[0], width)
    line[top : top + _BAR[1], left:right] = bar.picture(*_BAR)[:, : max(right - left, 0)]
    return line
