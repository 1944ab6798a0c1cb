"""Values of patches as colours: heat maps with their colour bars, and three components as red, green and blue."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from smalti.report.page import template
from smalti.report.pictures import Picture, data_uri

_RAMPS = {
    "viridis": "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
    "inferno": "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4",
}
"""Seventeen colours each, evenly spaced on matplotlib's colour maps of these names, which are perceptually uniform."""
_PALE = 0.7
"""How much white is mixed into an image where it has no value."""
_TAILS = (0.01, 0.99)
"""Of the scores of a component: what lies beyond these quantiles is as dark, or as bright, as what lies there."""


@dataclass(frozen=True)
class ColourBar:
    """What the colours of a heat map mean: the texts at the two ends of a scale.

    Attributes:
        name: of what is shown, as in the heading of its column.
    """

    name: str
    low: str
    high: str

    def picture(self, width: int, height: int) -> Picture:
        """The scale itself, from low to high."""
        shades = colours(np.linspace(0, 1, width), "viridis")
        return np.repeat(shades[None], height, axis=0)

    def html(self) -> str:
        """The scale with its texts, for a page."""
        return template("colour_bar.html").render(bar=self, picture=data_uri(self.picture(128, 1)))


def colours(values: Float[np.ndarray, "*shape"], ramp: str) -> UInt8[np.ndarray, "*shape 3"]:
    """Values in [0, 1] as colours, linear between those of a ramp."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in _RAMPS[ramp].split()], np.float64)
    at = np.linspace(0, 1, len(stops))
    return np.rint(np.stack([np.interp(values, at, channel) for channel in stops.T], axis=-1)).astype(np.uint8)


def heat_map(
    values: Float[np.ndarray, "n h w"], most: float | None, ramp: str, images: UInt8[np.ndarray, "n H W C"]
) -> UInt8[np.ndarray, "n H W 3"]:
    """Values of patches as squares of one colour; patches without one (NaN) show their image, pale and grey.

    Args:
        values: from 0.
        most: the value of the last colour; None: of each map its own greatest.
        ramp: `viridis` or `inferno`.
    """
    count, height, width, _ = images.shape
    top = most if most is not None else np.nanmax(values, axis=(1, 2), keepdims=True)
    large = _enlarged(np.divide(values, top, out=np.zeros_like(values), where=np.asarray(top) > 0), height, width)
    grey = images.mean(-1, keepdims=True)
    pale = np.broadcast_to(np.rint(grey + _PALE * (255 - grey)), (count, height, width, 3)).astype(np.uint8)
    painted: UInt8[np.ndarray, "n H W 3"] = np.where(
        np.isnan(large)[..., None], pale, colours(np.nan_to_num(large.clip(0, 1)), ramp)
    )
    return painted


def component_colours(scores: Float[np.ndarray, "n h w 3"], height: int, width: int) -> UInt8[np.ndarray, "n H W 3"]:
    """Three components of patches as red, green and blue, on one scale for all images, H x W pixels each."""
    low, high = np.quantile(scores.reshape(-1, 3), _TAILS, axis=0)
    spread = np.where(high > low, high - low, 1.0)
    shares = np.where(high > low, (scores - low) / spread, 0.5).clip(0, 1)
    return _enlarged(np.rint(255 * shares).astype(np.uint8), height, width)


def _enlarged(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values (n, h, w, ...) of patches at each of H x W pixels."""
    rows = values.repeat(height // values.shape[1], axis=1)
    return rows.repeat(width // values.shape[2], axis=2)
