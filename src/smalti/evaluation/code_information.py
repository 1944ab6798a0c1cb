"""What visual tokens tell: the mutual information of a code with its position, with the colour of its patch, and with
the class of its image, in bits.

Tokens whose codes tell much of position and colour tell little else; those with meaning tell the class, without having
seen one. A few tokens share information by chance; how much is shown beside each figure, from the same tokens in
another order.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from smalti.core.rng import fold, permutation
from smalti.functional.metrics import mutual_information
from smalti.functional.patches import patchify
from smalti.models.vit import as_unit_range

_LEVELS = {3: 4, 1: 64}
"""Levels of each channel of a mean colour, by channels: 64 colours."""
_SHUFFLES = 4
_NAMES = ("position", "colour", "class")


class Shared(NamedTuple):
    """The mutual information of codes and something else, in bits.

    Attributes:
        bits: the plug-in estimate, H(code) + H(other) - H(code, other), which is too high for few tokens.
        by_chance: the same where nothing is shared: the mean over shuffled tokens.
    """

    bits: float
    by_chance: float


class CodeInformation(NamedTuple):
    """What codes tell. `classes` is None without labels.

    Attributes:
        position: which of the N patches of the image it is.
        colour: the mean colour of the patch, one of 64: each channel in 4 equal parts of [0, 1], grey in 64.
    """

    position: Shared
    colour: Shared
    classes: Shared | None

    def describe(self) -> str:
        """One line."""
        shared = zip(_NAMES, self, strict=True)
        parts = [f"{one.bits:.2f} bits with its {name} ({one.by_chance:.2f} by chance)" for name, one in shared if one]
        return f"a code shares {', '.join(parts)}"


def figures_of(information: CodeInformation | None, prefix: str = "") -> dict[str, float | None]:
    """The numbers under the names that results and `--json` use; None where nothing was measured."""
    found: dict[str, float | None] = {}
    for name, one in zip(_NAMES, information or (None, None, None), strict=True):
        found[f"{prefix}{name}_bits"] = None if one is None else one.bits
        found[f"{prefix}{name}_bits_by_chance"] = None if one is None else one.by_chance
    return found


def code_information(
    ids: Int[Tensor, "B N"], images: Tensor, stride: int, keep: Bool[Tensor, "B N"], labels: Int[Tensor, "B"] | None
) -> CodeInformation:
    """What the codes of some images tell, counted at the positions where `keep` is True: at least one.

    Args:
        ids: in [0, V).
        images: B C H W, uint8 or float in [0, 1]; with other than 1 or 3 channels the mean of them is the colour.
        stride: side of a patch in pixels.
        labels: the class of each image; images with -1 have no part in what is shared with the class.
    """
    codes, image = ids[keep], torch.arange(len(ids))[:, None].expand_as(ids)[keep]
    position = torch.arange(ids.shape[1]).expand_as(ids)[keep]
    colour = torch.cat([mean_colours(part, stride) for part in images.split(500)])[keep]
    orders = [_shuffled(image, number) for number in range(_SHUFFLES)]
    classes = None
    if labels is not None and len(labels[labels >= 0].unique()) > 1:
        known = labels[image] >= 0
        some = [_shuffled(image[known], number) for number in range(_SHUFFLES)]
        classes = _shared(codes[known], labels[image][known], some)
    return CodeInformation(_shared(codes, position, orders), _shared(codes, colour, orders), classes)


def mean_colours(images: Tensor, stride: int) -> Int[Tensor, "B N"]:
    """The mean colour of every patch, as a number in [0, 64)."""
    channels = images.shape[1]
    mean = patchify(as_unit_range(images), stride).unflatten(-1, (channels, -1)).mean(-1)
    if channels not in _LEVELS:
        mean = mean.mean(-1, keepdim=True)
    levels = _LEVELS.get(channels, _LEVELS[1])
    places = levels ** torch.arange(mean.shape[-1])
    return ((mean * levels).long().clamp(0, levels - 1) * places).sum(-1)


def _shared(codes: Int[Tensor, "n"], other: Int[Tensor, "n"], orders: list[Int[Tensor, "n"]]) -> Shared:
    by_chance = [mutual_information(codes, other[order]) for order in orders]
    return Shared(mutual_information(codes, other), sum(by_chance) / len(by_chance))


def _shuffled(image: Int[Tensor, "n"], number: int) -> Int[Tensor, "n"]:
    """An order of the tokens in which images are shuffled, and the tokens of each image by themselves.

    Tokens of an image have one class and similar colours, so that they say less than as many of different images. They
    stay side by side here, which a shuffling of all tokens would not leave them.
    """
    place = permutation(number, 0, int(image[-1]) + 1)[image.numpy()]
    return torch.from_numpy(np.lexsort((fold(number, np.arange(len(image))), place)))
