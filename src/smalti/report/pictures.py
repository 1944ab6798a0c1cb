"""Pictures, and the codebook, as HTML fragments with data URIs: nothing is loaded from anywhere.

Text from outside is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from smalti.report.page import template

Picture = UInt8[np.ndarray, "_H _W _C"]
"""C is 1 or 3, or 4 with the opacity. Pictures side by side need not agree in any axis."""

_MASKED, _EDGE = 128, 152
"""Grey levels of a masked patch and of its edge."""
_SEEN, _ALWAYS_MASKED = 232, 40
"""Grey levels of a patch without an image: never masked, and always."""
_GOLDEN, _SATURATION, _LIGHTNESS = 0.6180339887498949, 0.7, (0.45, 0.62, 0.78)
GAP, _FRAME = 4, 2
"""Pixels: between the pictures of a sheet, and of the frame of a picture on a map."""
PICTURES = 8
"""Images in a picture that is logged."""
_MAX_OPEN = 32
"""Codes of a codebook that are shown before it is unfolded."""
_MAX_DEAD = 200
"""Numbers of codes that do not occur, listed at most."""


def tile_row(
    columns: Mapping[str, Iterable[Picture]], *, scale: int = 4, captions: Sequence[str] = (), across: int = 1
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
    shown = [(line, label, list(map(data_uri, row))) for line, label, row in zip(lines, labels, rows, strict=True)]
    each = max(1, -(-len(shown) // across))
    return template("tile_row.html").render(
        headings=list(columns),
        grids=[shown[start : start + each] for start in range(0, len(shown), each)],
        width=scale * (rows[0][0].shape[1] if rows else 0),
        sharp=scale > 1,
    )


def mask_overlay(
    images: UInt8[np.ndarray, "n H W C"], mask: Bool[np.ndarray, "n N"], patch: int
) -> UInt8[np.ndarray, "n H W C"]:
    """Copies of the images with their masked patches painted grey, each with a lighter edge at its top and left.

    Args:
        images: H and W are multiples of `patch`.
        mask: True where a patch is masked, row-major.
        patch: side of a patch in pixels.
    """
    _, height, width, _ = images.shape
    grid = mask.reshape(-1, height // patch, width // patch)
    masked = grid.repeat(patch, axis=1).repeat(patch, axis=2)
    thin = max(1, patch // 16)
    edge = (np.arange(height)[:, None] % patch < thin) | (np.arange(width) % patch < thin)
    paint = np.where(edge, _EDGE, _MASKED).astype(np.uint8)
    painted: UInt8[np.ndarray, "n H W C"] = np.where(masked[..., None], paint[..., None], images)
    return painted


def share_map(share: Float[np.ndarray, "n h w"] | Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 1"]:
    """Masks, or shares of masks in [0, 1], one pixel a patch: light grey for unmasked, dark for always masked."""
    grey: UInt8[np.ndarray, "n h w"] = np.rint(_SEEN + (_ALWAYS_MASKED - _SEEN) * share).astype(np.uint8)
    return grey[..., None]


def token_map(ids: Int[np.ndarray, "n h w"], stride: int = 1) -> UInt8[np.ndarray, "n _H _W 3"]:
    """Every visual token as a coloured square, `stride` pixels wide. An id has the same colour in every picture.

    Hues go round by the golden angle, so that neighbouring numbers look different; with thousands of codes some look
    alike. A colour has no meaning beyond its number.
    """
    hue = ids * _GOLDEN % 1.0
    light = np.array(_LIGHTNESS)[ids % len(_LIGHTNESS)]
    chroma = _SATURATION * np.minimum(light, 1 - light)
    turns = (hue[..., None] * 12 + np.array([0, 8, 4])) % 12  # red, green and blue of HSL
    colour = light[..., None] - chroma[..., None] * np.clip(np.minimum(turns - 3, 9 - turns), -1, 1)
    small: UInt8[np.ndarray, "n h w 3"] = np.rint(255 * colour).astype(np.uint8)
    return small.repeat(stride, axis=1).repeat(stride, axis=2)


def token_colours(
    ids: Int[np.ndarray, "n h w"], pictures: UInt8[np.ndarray, "n H W C"]
) -> UInt8[np.ndarray, "n H W 3"]:
    """Every visual token in the mean colour of all patches of these pictures that have the same one."""
    (count, rows, columns), side = ids.shape, pictures.shape[1] // ids.shape[1]
    patches = pictures.reshape(count, rows, side, columns, side, -1).mean((2, 4)).reshape(ids.size, -1)
    codes, place = np.unique(ids, return_inverse=True)
    total = np.stack([np.bincount(place.reshape(-1), channel, len(codes)) for channel in patches.T], axis=1)
    mean = np.rint(total / np.bincount(place.reshape(-1))[:, None]).astype(np.uint8)
    painted: UInt8[np.ndarray, "n h w 3"] = np.broadcast_to(mean[place.reshape(ids.shape)], (*ids.shape, 3))
    return painted.repeat(side, axis=1).repeat(side, axis=2)


def tile_map(
    cells: UInt8[np.ndarray, "rows columns side side 3"],
    labels: Int[np.ndarray, "rows columns"] | None,
    full: Bool[np.ndarray, "rows columns"],
    classes: Sequence[str],
) -> str:
    """Pictures on a grid, as one picture, with a frame in the colour of the class of each; empty cells are clear.

    Args:
        labels: the class of each cell; None: no frames.
        full: whether there is a picture in a cell.
    """
    rows, columns, side, _, _ = cells.shape
    painted = np.zeros((rows, columns, side, side, 4), np.uint8)
    painted[..., :3] = cells
    painted[..., 3] = 255 * full[..., None, None]
    keys = []
    if labels is not None:
        colours = token_map(np.arange(len(classes))[None, None])[0, 0]
        frame = np.ones((side, side), np.bool_)
        frame[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
        painted[:, :, frame, :3] = colours[labels][:, :, None]
        shown = np.unique(labels[full]).tolist()
        keys = [(f"rgb({', '.join(map(str, colours[number].tolist()))})", classes[number]) for number in shown]
    whole = painted.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 4)
    return template("tile_map.html").render(
        picture=data_uri(whole), width=columns * side, keys=keys, count=int(full.sum())
    )


def scale_of(width: int, shown: int = 112) -> int:
    """Screen pixels for each image pixel: small images are shown about `shown` pixels wide."""
    return max(1, round(shown / width))


def outlined(
    image: UInt8[np.ndarray, "H W C"], label_map: UInt8[np.ndarray, "H W"], neutral: tuple[int, ...]
) -> UInt8[np.ndarray, "H W 3"]:
    """The image in muted colours, with the outline of every region in the colour of its class (`label_colours`).

    Args:
        neutral: classes without an outline, as background and void.
    """
    colour = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64)
    muted = 0.5 * colour + 0.5 * colour.mean(-1, keepdims=True)
    edge = np.zeros(label_map.shape, np.bool_)
    for axis in (0, 1):
        for step in range(1, 1 + max(1, min(label_map.shape) // 128)):
            here, there = (np.delete(label_map, ends, axis) for ends in (np.s_[-step:], np.s_[:step]))
            differ = np.pad(here != there, [(0, step) if number == axis else (0, 0) for number in (0, 1)])
            edge |= differ | np.roll(differ, step, axis)
    edge &= ~np.isin(label_map, neutral)
    return np.where(edge[..., None], label_colours(label_map, 255), np.rint(muted).astype(np.uint8))


def label_colours(label_map: UInt8[np.ndarray, "H W"], void: int) -> UInt8[np.ndarray, "H W 3"]:
    """The class of every pixel as the colour that `token_map` gives its number; what is void is black."""
    colours = token_map(label_map[None].astype(np.int64))[0]
    painted: UInt8[np.ndarray, "H W 3"] = np.where((label_map == void)[..., None], np.uint8(0), colours)
    return painted


def mask_png(label_map: UInt8[np.ndarray, "H W"], ids: UInt8[np.ndarray, "classes"]) -> bytes:
    """A mask as a PNG file: the id of every pixel, with a palette of the colours of `label_colours`.

    Args:
        ids: the id of each class.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[ids] = label_colours(np.arange(len(ids), dtype=np.uint8)[None], void=255)[0]
    picture, buffer = Image.fromarray(ids[label_map]), io.BytesIO()
    picture.putpalette(palette.tobytes())
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def sheet(columns: Mapping[str, UInt8[np.ndarray, "n _H _W _C"]], scale: int = 1) -> UInt8[np.ndarray, "_H _W 3"]:
    """The pictures of `tile_row` as one picture, without headings: a row for each image, white in between.

    Args:
        columns: the pictures, all n of a column of one size; each is shown at the size of the first column.
        scale: pixels for a pixel of the first column.

    Raises:
        ValueError: columns of different lengths.
    """
    rows = list(zip(*columns.values(), strict=True))
    height, width = rows[0][0].shape[:2] if rows else (1, 1)
    tall, wide = scale * height + GAP, scale * width + GAP
    painted = np.full((len(rows) * tall + GAP, len(columns) * wide + GAP, 3), 255, np.uint8)
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            large = Image.fromarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))
            enlarged = np.asarray(large.resize((scale * width, scale * height), Image.Resampling.NEAREST))
            top, left = down * tall + GAP, right * wide + GAP
            painted[top : top + scale * height, left : left + scale * width] = enlarged
    return painted


def thumbnails(columns: Mapping[str, UInt8[np.ndarray, "n _H _W _C"]]) -> UInt8[np.ndarray, "_H _W 3"]:
    """`sheet`, with small pictures at a multiple of their size, about 64 pixels wide."""
    return sheet(columns, scale_of(next(iter(columns.values())).shape[2], 64))


def to_pixels(images: Tensor, shown: Sequence[int] | None = None) -> UInt8[np.ndarray, "n H W _C"]:
    """Convert images (n, C, H, W), uint8 or float in [0, 1], to uint8 pictures with channels last.

    Args:
        shown: as for `false_colours`.
    """
    pixels = images if images.dtype == torch.uint8 else (images.float() * 255).round().to(torch.uint8)
    return false_colours(pixels.cpu().permute(0, 2, 3, 1).numpy(), shown)


def false_colours(
    pixels: UInt8[np.ndarray, "*n H W C"], shown: Sequence[int] | None = None
) -> UInt8[np.ndarray, "*n H W _C"]:
    """Some channels as red, green and blue, or one as grey.

    Args:
        shown: the numbers of three channels, or of one; None: all of grey and RGB, and of others the first three, blue
            being black where there are two.
    """
    channels = pixels.shape[-1]
    if shown is None and channels in (1, 3):
        return pixels
    if shown is None and channels == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=-1)
    return np.ascontiguousarray(pixels[..., list(shown or (0, 1, 2))])


def data_uri(picture: Picture) -> str:
    """A picture as a data URI with its PNG file."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def png(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Card:
    """A visual token: its decoded patch, the share of positions that have it, and some patches that do."""

    number: int
    share: float
    prototype: Picture
    examples: UInt8[np.ndarray, "_n _H _W _C"]


def atlas(cards: Sequence[Card], counts: Int[np.ndarray, "V"] | Sequence[int]) -> str:
    """Cards in the given order, the frequency of each as its tooltip; below them the codes that do not occur.

    The first 32 are shown; the others unfold.

    Args:
        counts: how often each of the V codes occurs.

    Raises:
        ValueError: a card of a code that has no count.
    """
    numbers = np.asarray(counts)
    if any(not 0 <= card.number < len(numbers) for card in cards):
        raise ValueError(f"a card of a code that is not among the {len(numbers)} codes")
    examples = max((len(card.examples) for card in cards), default=0)
    columns = f"32px repeat({examples}, 26px)" if examples else "32px"
    shown = f" The {len(cards)} most frequent are shown." if len(cards) < np.count_nonzero(numbers) else ""
    described = [(c.number, c.share, data_uri(c.prototype), list(map(data_uri, c.examples))) for c in cards]
    return template("atlas.html").render(
        shown=described[:_MAX_OPEN],
        folded=described[_MAX_OPEN:],
        columns=columns,
        caption=f"{_use(numbers)}{shown}{_dead(numbers)}",
    )


def _use(counts: Int[np.ndarray, "V"]) -> str:
    top = 100 * counts.max(initial=0) / max(counts.sum(), 1)
    used = f"{np.count_nonzero(counts)} of {len(counts)} visual tokens occur"
    return f"{used}; the most frequent takes {top:.2g} % of the positions."


def _dead(counts: Int[np.ndarray, "V"]) -> str:
    dead = np.flatnonzero(counts == 0)
    if not len(dead):
        return ""
    more = f" and {len(dead) - _MAX_DEAD} more" if len(dead) > _MAX_DEAD else ""
    return f" These do not: {', '.join(map(str, dead[:_MAX_DEAD]))}{more}."
