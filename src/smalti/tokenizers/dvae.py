"""Our image tokenizer: a discrete VAE that computes at the resolution of its tokens.

encoder  patch embedding -> residual 3x3 blocks -> logits over the codebook, at every position
codebook one vector per visual token
decoder  residual 3x3 blocks -> mean and log-scale of a logit-Laplace distribution for every pixel of the patch
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import setting
from smalti.functional.codebook import kmeans
from smalti.tokenizers.discrete import best_codes
from smalti.tokenizers.trunk import Trunk, drawn, error_unit, float32, require_trunk, set_conv


@dataclass(frozen=True)
class DVAE:
    """Configuration of the tokenizer."""

    vocab_size: int = setting(512, "visual tokens", "BEiT §2.1.2 uses 8192")
    stride: int = setting(8, "pixels between tokens", "BEiT §2.1.2: 112 / 14")
    in_chans: int = setting(3, "channels")
    width: int = setting(64, "channels")
    depth: int = setting(2, "residual blocks in the encoder and in the decoder")

    def __post_init__(self) -> None:
        require_trunk(self)

    def build(self, seed: int = 0) -> "DiscreteVAE":
        """A network with random weights, which are a function of the seed."""
        return drawn(lambda: DiscreteVAE(self), seed)


class DiscreteVAE(Trunk):
    """q_φ(z|x) is `logits`, p_ψ(x|z) is `distribution`; training computes both in parts (`discrete.relax`)."""

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
        return self.pixels(self.codebook(weights))

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
        return self.picture(codes)
