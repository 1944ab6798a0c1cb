"""Our image tokenizer: a discrete VAE that computes at the resolution of its tokens.

encoder  patch embedding -> residual 3x3 blocks -> logits over the codebook, at every position
codebook one vector per visual token
decoder  residual 3x3 blocks -> mean and log-scale of a logit-Laplace distribution for every pixel of the patch

`relax`, `best_codes` and `split` are for all discrete VAEs, also for DALL-E's (dalle.py).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import setting
from smalti.functional.codebook import fast_argmax, kmeans, positions_per_chunk
from smalti.functional.gumbel_relaxation import RelaxedTokens, relaxed_tokens
from smalti.models.layers import seeded
from smalti.tokenizers.dalle import DallETokenizer
from smalti.tokenizers.trunk import Trunk, error_unit, float32, require_trunk, set_conv

_CUT = 0.1
"""By how much the logit of a code that splits another one's cell rises faster than that one's, as a share."""


def relax(
    tokenizer: "DiscreteVAE | DallETokenizer",
    images: Tensor,
    key: Int[Tensor, "B"],
    temperature: float,
    *,
    hard: bool = False,
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
    return tokens, *tokenizer.pixel_distribution(codes.transpose(1, 2).unflatten(2, features.shape[2:]))


def best_codes(features: Float[Tensor, "B D h w"], to_logits: nn.Conv2d) -> Int[Tensor, "B h w"]:
    """The code with the greatest logit at every position, in [0, V), computed in parts to bound memory."""
    rows, weight = features.permute(0, 2, 3, 1), to_logits.weight[:, :, 0, 0]
    with float32(features):
        parts = rows.float().flatten(0, 2).split(positions_per_chunk(len(weight), weight.device))
        return torch.cat([fast_argmax(F.linear(part, weight, to_logits.bias)) for part in parts]).view(rows.shape[:3])


@torch.no_grad()
def split(
    tokenizer: "DiscreteVAE | DallETokenizer",
    dead: Int[Tensor, "k"],
    parents: Int[Tensor, "k"],
    scores: Float[Tensor, "k"],
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


@dataclass(frozen=True)
class DVAE:
    """Configuration of the tokenizer."""

    vocab_size: int = setting(512, "visual tokens that there are", "BEiT §2.1.2 uses 8192")
    stride: int = setting(8, "pixels between tokens", "BEiT §2.1.2: 112 / 14")
    in_chans: int = setting(3, "channels of an image")
    width: int = setting(64, "channels of the convolutions")
    depth: int = setting(2, "residual blocks in the encoder and in the decoder")

    def __post_init__(self) -> None:
        require_trunk(self)

    def build(self, seed: int = 0) -> "DiscreteVAE":
        """A network with random weights, which are a function of the seed."""
        return seeded(seed, lambda: DiscreteVAE(self))


class DiscreteVAE(Trunk):
    """q_φ(z|x) is `logits`, p_ψ(x|z) is `distribution`; training computes both in parts (`relax`)."""

    config: DVAE

    def __init__(self, config: DVAE) -> None:
        super().__init__(config)
        self.to_logits = nn.Conv2d(config.width, config.vocab_size, kernel_size=1)
        self.codebook = nn.Conv2d(config.vocab_size, config.width, kernel_size=1, bias=False)
        self.add_decoder()

    def logits(self, images: Tensor) -> Float[Tensor, "B V h w"]:
        """Logits over the visual tokens at every position.

        Args:
            images: B C H W, uint8 or float in [0, 1], sides multiples of the stride.
        """
        features = self.features(images)
        with float32(features):
            return self.to_logits(features.float())

    def distribution(
        self, weights: Float[Tensor, "B V h w"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, for relaxed or one-hot tokens."""
        return self.pixel_distribution(self.codebook(weights))

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Initialise as a mixture of Gaussians fitted to patches, so that all codes are in use from the first step.

        The encoder projects patches to their principal components, in units of the root mean square distance to the
        nearest of V k-means centres. The centres are the codebook, the logits are those of their posterior, and the
        decoder reproduces a centre. Started from random weights, a Gumbel-softmax tokenizer uses a few dozen codes.

        Args:
            images: a sample of the training images. Patches of a single colour are left out, as one code represents
                them.
            order: a permutation of at least as many numbers as there are patches in the sample.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        sample = self.sample(images)
        centres = kmeans(sample.points, self.vocab_size, order[order < len(sample.points)])
        unit = error_unit(sample.points, centres, self.num_pixels)
        centres = centres / unit
        self.set_projections(sample, unit)
        set_conv(self.to_logits, centres, -0.5 * centres.square().sum(1))
        self.codebook.weight.copy_(centres.t()[:, :, None, None])

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The most likely visual token at every position."""
        return best_codes(self.features(images), self.to_logits)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image given the tokens, in [0, 1]."""
        codes = F.embedding(ids, self.codebook.weight[:, :, 0, 0].t()).permute(0, 3, 1, 2)
        return self.most_likely_image(codes)
