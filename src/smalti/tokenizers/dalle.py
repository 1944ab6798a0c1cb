"""The public DALL-E tokenizer: the architecture of OpenAI's discrete VAE, layer for layer.

encoder  7x7 -> groups of residual blocks, halved by max-pooling between groups -> ReLU, 1x1 -> logits over the codebook
decoder  1x1 (the codebook) -> the same groups in reverse, doubled between groups -> ReLU, 1x1 -> mean and log-scale

Reference: Ramesh et al., Zero-Shot Text-to-Image Generation (DALL-E), appendix A; BEiT §2.1.2 uses its weights.
Differs: widths, number of groups and channels are configurable; bf16 under autocast instead of fp16.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.functional.losses import LAPLACE_EPSILON
from smalti.models.vit import as_unit_range
from smalti.tokenizers.dalle_blocks import Conv, groups
from smalti.tokenizers.image_tokenizer import ImageTokenizer, require_tokens
from smalti.tokenizers.trunk import float32

_POSITIONS = 256
"""Positions whose logits `encode` computes at a time."""
_SHORTLIST = 8
"""Codes per position whose logits are computed again in float32, since bf16 has only three digits."""


@dataclass(frozen=True)
class DallE:
    """Configuration of the tokenizer. The defaults are those of the public one."""

    vocab_size: int = setting(8192, "visual tokens", "DALL-E, appendix A; BEiT §2.1.2")
    stride: int = setting(8, "pixels between tokens", "DALL-E, appendix A")
    in_chans: int = setting(3, "channels")
    width: int = setting(256, "channels at full resolution; twice as many after each halving", "n_hid of the release")
    depth: int = setting(2, "blocks a group", "n_blk_per_group of the release")
    code_width: int = setting(128, "length of a codebook vector", "n_init of the release")

    def __post_init__(self) -> None:
        require_tokens(self)
        require(self.width >= 4 and self.width % 4 == 0, f"a width of {self.width}", "use a multiple of 4")
        require(self.depth >= 1, f"{self.depth} blocks a group", "use at least 1")
        require(self.code_width >= 1, f"codebook vectors of length {self.code_width}", "use at least 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each group of the encoder: one group a resolution."""
        return tuple(self.width * 2**level for level in range(self.stride.bit_length()))

    def build(self, seed: int = 0) -> "DallETokenizer":
        """A network with random weights, which are a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DallETokenizer(self)


class DallETokenizer(ImageTokenizer):
    """q_φ(z|x) is `logits`, p_ψ(x|z) is `distribution`. Both apply the pixel map [0, 1] -> [ε, 1-ε] themselves."""

    def __init__(self, config: DallE) -> None:
        super().__init__(config)
        narrow, wide, down, up = config.width, config.widths[-1], config.widths, config.widths[::-1]
        self.embed = Conv(config.in_chans, narrow, 7)
        self.encoder = groups(narrow, down, config.depth, (3, 3, 3, 1), nn.MaxPool2d(2))
        self.to_logits = Conv(wide, config.vocab_size, 1)
        self.codebook = Conv(config.vocab_size, config.code_width, 1)
        self.decoder = groups(config.code_width, up, config.depth, (1, 3, 3, 3), nn.Upsample(scale_factor=2))
        self.to_pixels = Conv(narrow, 2 * config.in_chans, 1)
        self.to(memory_format=torch.channels_last)

    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Does nothing: as in the paper, training starts from random weights. A short training then uses few codes."""

    def logits(self, images: Tensor) -> Float[Tensor, "B V h w"]:
        """Logits over the visual tokens at every position.

        Args:
            images: B C H W, uint8 or float in [0, 1], sides multiples of the stride.
        """
        features = self.features(images)
        return self._scores(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def distribution(
        self, weights: Float[Tensor, "B V h w"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, for relaxed or one-hot tokens."""
        with float32(weights):
            codes = self.codebook(weights.float())
        return self.pixels(codes)

    def features(self, images: Tensor) -> Float[Tensor, "B D h w"]:
        """The output of the encoder for images, uint8 or float in [0, 1]."""
        x = (1 - 2 * LAPLACE_EPSILON) * as_unit_range(images) + LAPLACE_EPSILON
        features: Tensor = self.encoder(self.embed(x.contiguous(memory_format=torch.channels_last)))
        return features.relu()

    def pixels(self, codes: Float[Tensor, "B d h w"]) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, for codebook vectors."""
        pixels: Tensor = self.to_pixels(self.decoder(codes).relu()).float()
        mean, log_scale = pixels.chunk(2, dim=1)
        return mean, log_scale

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The most likely visual token at every position."""
        positions = self.features(images).permute(0, 2, 3, 1)
        weight = self.to_logits.weight[:, :, 0, 0].to(positions.dtype)
        parts = positions.flatten(0, 2).split(
            _POSITIONS
        )  # the logits of all positions would be the largest tensor by far
        return torch.cat([self._best(part, weight) for part in parts]).view(positions.shape[:3])

    def _best(self, features: Float[Tensor, "n D"], weight: Float[Tensor, "V D"]) -> Int[Tensor, "n"]:
        """The code with the greatest logit; bf16 logits select a shortlist, whose logits are recomputed in float32."""
        if features.dtype == torch.float32:
            return self._scores(features).argmax(1)
        assert self.to_logits.bias is not None
        rough = F.linear(features, weight, self.to_logits.bias.to(weight.dtype))
        shortlist = rough.topk(min(_SHORTLIST, self.vocab_size)).indices
        with float32(features):
            exact = torch.bmm(self.to_logits.weight[:, :, 0, 0][shortlist], features.float()[:, :, None])[:, :, 0]
        best = (exact + self.to_logits.bias[shortlist]).argmax(1, keepdim=True)
        return shortlist.gather(1, best)[:, 0]

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The most likely image given the tokens, in [0, 1]."""
        assert self.codebook.bias is not None
        codes = F.embedding(ids, self.codebook.weight[:, :, 0, 0].t()) + self.codebook.bias
        mean, _ = self.pixels(codes.permute(0, 3, 1, 2))
        return ((mean.sigmoid() - LAPLACE_EPSILON) / (1 - 2 * LAPLACE_EPSILON)).clamp(0, 1)

    def _scores(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        with float32(features):
            return F.linear(features.float(), self.to_logits.weight[:, :, 0, 0], self.to_logits.bias)
