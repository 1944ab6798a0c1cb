"""Pictures as HTML fragments with data URIs: nothing is loaded from anywhere. Text from outside is escaped."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "_H _W _C"]
"""C is 1 or 3. Pictures side by side need not agree in any axis."""

_HIDDEN, _EDGE = 128, 152
"""Grey levels of a hidden patch and of its edge."""


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
