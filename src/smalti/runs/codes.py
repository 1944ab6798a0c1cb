"""What visual tokens stand for: some codes of a tokenizer, and places in images where each occurs."""

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.core.errors import UsageError
from smalti.data.reading import even_sample
from smalti.data.tokens import encode
from smalti.evaluation.codebook_survey import prototypes
from smalti.functional.patches import varied_patches
from smalti.report.pictures import to_pixels
from smalti.runs.inpainting_pictures import Columns

_EXAMPLES = 6
"""Images in which a code is shown, one place in each."""
_AROUND = 2
"""Patches to each side of that place."""
_SIDE = 120
"""Pixels of a picture, at least."""
_FRAME = np.array([255, 64, 0], np.uint8)


def places_of_codes(
    ids: Int[np.ndarray, "n h w"], varied: Bool[np.ndarray, "n h w"], most: int
) -> dict[int, Int[np.ndarray, "k 3"]]:
    """Some codes, the most frequent first, and for each the places (image, row, column) where it is shown.

    Of the codes that occur in at least as many images as are shown (in at least one, where there are no such codes)
    `most` are taken, evenly over their order by frequency. A place is the first in its image.

    Args:
        varied: whether a patch has more than one colour; others do not count.
    """
    images, rows, columns = np.nonzero(varied)
    codes = ids[images, rows, columns]
    numbers, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    firsts = np.unique(np.stack([inverse, images]), axis=1, return_index=True)[1]
    spread = np.bincount(inverse[firsts], minlength=len(numbers))
    known = np.flatnonzero(spread >= min(_EXAMPLES, spread.max(initial=1)))
    known = known[np.argsort(-counts[known], kind="stable")]
    found = dict[int, Int[np.ndarray, "k 3"]]()
    for chosen in known[even_sample(len(known), most)]:
        own = firsts[inverse[firsts] == chosen]
        own = own[even_sample(len(own), _EXAMPLES)]
        found[int(numbers[chosen])] = np.stack([images[own], rows[own], columns[own]], 1)
    return found


def codebook_examples(
    tokenizer: Tokenizer, images: Tensor, most: int, compute: Compute, shown: tuple[int, ...] | None
) -> tuple[Columns, list[str], str]:
    """A row for each of some codes: what it is decoded to, and places where it occurs, framed, amid what is around.

    Args:
        images: B C H W, uint8.

    Returns:
        Pictures by column heading, a caption for each row, and a description.

    Raises:
        UsageError: every patch is of a single colour.
    """
    stride = tokenizer.stride
    grid = (len(images), images.shape[-2] // stride, images.shape[-1] // stride)
    ids = encode(images, tokenizer, compute).cpu()
    numbers, varied = ids.view(grid).numpy(), varied_patches(images, stride).view(grid).numpy()
    places = places_of_codes(numbers, varied, most)
    if not places:
        raise UsageError("no codes to show: every patch is of a single colour", fix="give images that have detail")
    pixels = to_pixels(images, shown)
    painted = to_pixels(torch.stack(prototypes(tokenizer, torch.tensor(list(places)), compute)), shown)
    around = 2 * _AROUND + 1
    zoom = -(-_SIDE // (around * stride))
    columns = {"decoded": _enlarged(painted, zoom * around)}
    for number in range(max(len(own) for own in places.values())):
        cut = [_framed(pixels, own[number % len(own)], stride, zoom) for own in places.values()]
        columns[f"example {number + 1}"] = np.stack(cut)
    share = np.bincount(numbers[varied], minlength=tokenizer.vocab_size) / int(varied.sum())
    captions = [f"code {number}: {share[number]:.2%} of the patches" for number in places]
    note = (
        "Of each visual token first what it is decoded to among its like, then places where it occurs, each in another"
        " image: the patch in the frame has the token, and what is around it is shown since some tokenizers see it."
        " Codes are spread evenly over their order by frequency; patches of a single colour do not count."
    )
    return columns, captions, note


def _framed(
    pixels: UInt8[np.ndarray, "n H W C"], place: Int[np.ndarray, "3"], stride: int, zoom: int
) -> UInt8[np.ndarray, "s s C"]:
    """A patch with a frame around it and the patches beside it, those nearest to them at a border."""
    image, *corner = place.tolist()
    margin = _AROUND * stride
    wide = np.pad(pixels[image], ((margin, margin), (margin, margin), (0, 0)), mode="constant", constant_values=128)
    top, left = (stride * position for position in corner)
    side = stride * (2 * _AROUND + 1)
    cut = _enlarged(wide[None, top : top + side, left : left + side], zoom)[0]
    if cut.shape[-1] == 1:
        cut = np.repeat(cut, 3, -1)
    low, high = margin * zoom - 2, (margin + stride) * zoom + 1
    for edge in (low, low + 1, high - 1, high):
        cut[edge, low : high + 1] = cut[low : high + 1, edge] = _FRAME
    return cut


def _enlarged(pictures: UInt8[np.ndarray, "n H W C"], zoom: int) -> UInt8[np.ndarray, "n _ _ C"]:
    return pictures.repeat(zoom, 1).repeat(zoom, 2)
