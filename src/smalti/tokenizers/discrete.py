"""What our discrete VAE (dvae.py) and DALL-E's (dalle.py) have in common: logits over a codebook as the bottleneck.

encoder -> features -> `to_logits` -> weights of the codes -> `codebook` -> decoder
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.functional.codebook import greatest
from smalti.functional.gumbel_relaxation import RelaxedTokens, relaxed_tokens
from smalti.tokenizers.trunk import float32

_POSITIONS = 256
"""Positions whose logits `best_codes` computes at a time."""
_CUT = 0.1
"""By how much the logit of a code that splits another one's cell rises faster than that one's, as a share."""


class DiscreteTokenizer(Protocol):
    """A tokenizer that is trained as a discrete VAE. Both of its convolutions are 1x1."""

    @property
    def to_logits(self) -> nn.Conv2d: ...
    @property
    def codebook(self) -> nn.Conv2d: ...

    def features(self, images: Tensor) -> Float[Tensor, "B D h w"]:
        """The output of the encoder for images, uint8 or float in [0, 1]."""
        ...

    def pixels(self, codes: Float[Tensor, "B d h w"]) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, for codebook vectors."""
        ...


def relax(
    tokenizer: DiscreteTokenizer, images: Tensor, key: Int[Tensor, "B"], temperature: float, *, hard: bool = False
) -> tuple[RelaxedTokens, Tensor, Tensor]:
    """Encode images to relaxed tokens and decode these.

    Args:
        tokenizer: the discrete VAE.
        images: B C H W, uint8 or float in [0, 1].
        key: one key per image, of which the Gumbel noise is a function.
        temperature: τ > 0.
        hard: decode one-hot samples, with straight-through gradients.

    Returns:
        The relaxed tokens; μ and ln b of every sub-pixel, B x C x H x W each.
    """
    features, to_logits, codebook = tokenizer.features(images), tokenizer.to_logits, tokenizer.codebook
    dtype = torch.get_autocast_dtype(features.device.type) if torch.is_autocast_enabled(features.device.type) else None
    assert to_logits.bias is not None
    with float32(features):
        tokens = relaxed_tokens(
            features.float().flatten(2).transpose(1, 2),
            to_logits.weight.flatten(1),
            to_logits.bias,
            codebook.weight.flatten(1).t().to(dtype).contiguous(),
            key,
            temperature,
            hard=hard,
        )
    codes = tokens.codes if codebook.bias is None else tokens.codes + codebook.bias.to(dtype)
    return tokens, *tokenizer.pixels(codes.transpose(1, 2).unflatten(2, features.shape[2:]))


def best_codes(features: Float[Tensor, "B D h w"], to_logits: nn.Conv2d) -> Int[Tensor, "B h w"]:
    """The code with the greatest logit at every position, in [0, V), computed in parts to bound memory."""
    rows, weight = features.permute(0, 2, 3, 1), to_logits.weight[:, :, 0, 0]
    with float32(features):
        parts = rows.float().flatten(0, 2).split(_POSITIONS)
        return torch.cat([greatest(F.linear(part, weight, to_logits.bias)) for part in parts]).view(rows.shape[:3])


@torch.no_grad()
def split(
    tokenizer: DiscreteTokenizer, dead: Int[Tensor, "k"], parents: Int[Tensor, "k"], scores: Float[Tensor, "k"]
) -> None:
    """Split the cells of parent codes: a dead code takes over positions where its parent's logit is above average.

    There the logit of the dead code is greater than the parent's, elsewhere smaller. Both have the same codebook vector
    until training makes them different.

    Args:
        tokenizer: the discrete VAE, which is changed in place.
        dead: codes without use, in [0, V).
        parents: a code in use for each of them.
        scores: mean logit of each parent over the positions where it is the most likely code.
    """
    weight, bias = tokenizer.to_logits.weight, tokenizer.to_logits.bias
    assert bias is not None
    weight[dead] = (1 + _CUT) * weight[parents]
    bias[dead] = (1 + _CUT) * bias[parents] - _CUT * scores
    tokenizer.codebook.weight[:, dead] = tokenizer.codebook.weight[:, parents]
