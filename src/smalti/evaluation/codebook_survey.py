"""What each visual token of a tokenizer stands for: its decoded patch, how often it occurs, and patches with it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.data.reading import even_sample
from smalti.evaluation.token_sample import sample_index
from smalti.functional.patches import patchify, varied_patches
from smalti.models.vit import as_unit_range

_AROUND = 5
"""A prototype is the centre of a square of so many equal tokens on a side, away from the border."""


class Code(NamedTuple):
    """One visual token, with images in [0, 1].

    Attributes:
        number: the token, in [0, V).
        share: its share of the positions whose patch has more than one colour, in [0, 1].
        prototype: its decoded patch, amid equal tokens.
        examples: some held-out patches with this token, drawn evenly from all of them.
    """

    number: int
    share: float
    prototype: Float[Tensor, "C s s"]
    examples: Float[Tensor, "_ C s s"]


class Survey(NamedTuple):
    """The most frequent codes, and the count of each of the V codes on patches with more than one colour."""

    codes: list[Code]
    counts: Int[Tensor, "V"]


@torch.no_grad()
def survey(tokenizer: Tokenizer, images: Tensor, compute: Compute, most: int = 128, examples: int = 4) -> Survey:
    """Survey the codes that occur in held-out images.

    Args:
        images: B C H W, uint8 or float in [0, 1].
        most: the number of codes to describe, the most frequent ones.
        examples: the most patches per code.
    """
    stride = tokenizer.stride
    seen = images[sample_index(images, stride)]
    keep = varied_patches(seen, stride)
    with compute.autocast():
        ids = torch.cat([tokenizer.encode(part.to(compute.device)).flatten(1).cpu() for part in seen.split(100)])[keep]
    patches = patchify(seen, stride)[keep]
    counts = torch.bincount(ids, minlength=tokenizer.vocab_size)
    order = counts.argsort(descending=True, stable=True)[:most]
    frequent = order[counts[order] > 0]
    shape = (-1, seen.shape[1], stride, stride)
    places = dict(zip(ids.unique().tolist(), ids.argsort(stable=True).split(counts[counts > 0].tolist()), strict=True))
    own = [places[number] for number in frequent.tolist()]
    drawn = [as_unit_range(patches[at[even_sample(len(at), examples)]]).view(shape) for at in own]
    painted = prototypes(tokenizer, frequent, compute)
    shares = (counts[frequent] / max(len(ids), 1)).tolist()
    return Survey([Code(*fields) for fields in zip(frequent.tolist(), shares, painted, drawn, strict=True)], counts)


@torch.no_grad()
def prototypes(tokenizer: Tokenizer, numbers: Int[Tensor, "k"], compute: Compute) -> list[Float[Tensor, "C s s"]]:
    """The decoded patch of each of these visual tokens, amid equal tokens, in [0, 1]."""
    inside = slice(_AROUND // 2 * tokenizer.stride, (_AROUND // 2 + 1) * tokenizer.stride)
    painted: list[Tensor] = []
    for part in numbers.to(compute.device).split(32):
        with compute.autocast():
            pictures = tokenizer.decode(part[:, None, None].expand(-1, _AROUND, _AROUND).contiguous())
        painted += pictures[..., inside, inside].float().cpu()
    return painted
