"""The public DALL-E tokenizer: the architecture of OpenAI's discrete VAE, layer for layer.

encoder  7x7 -> groups of residual blocks, halved by max-pooling between groups -> ReLU, 1x1 -> logits over the codebook
decoder  1x1 (the codebook) -> the same groups in reverse, doubled between groups -> ReLU, 1x1 -> mean and log-scale

Reference: Ramesh et al., Zero-Shot Text-to-Image Generation (DALL-E), appendix A; BEiT §2.1.2 uses its weights.
Differs: widths, number of groups and channels are configurable; bf16 under autocast instead of fp16.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.functional.codebook import positions_per_chunk
from smalti.functional.losses import LAPLACE_EPSILON, most_likely_pixels
from smalti.models.layers import seeded
from smalti.models.vit import as_unit_range
from smalti.tokenizers.image_tokenizer import ImageTokenizer, require_tokens
from smalti.tokenizers.trunk import float32

Kernels: TypeAlias = tuple[int, int, int, int]
_SHORTLIST = 8
"""Codes per position whose logits are computed again in float32, since bf16 has only three digits."""


class Conv(nn.Conv2d):
    """A convolution that keeps the size, with weights from N(0, 1/fan_in) and biases 0."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__(n_in, n_out, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight[0].numel()))
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """x + gain · (four times ReLU and convolution); a 1x1 convolution of x where the number of channels changes.

    Args:
        n_in, n_out: channels of input and output; the branch has n_out/4.
        kernels: sizes of the four convolutions: 3, 3, 3, 1 in the encoder, 1, 3, 3, 3 in the decoder.
        gain: 1/layers², so that the sum over the branches of all layers starts small.
    """

    def __init__(self, n_in: int, n_out: int, kernels: Kernels, gain: float) -> None:
        super().__init__()
        self.gain = gain
        widths = (n_in, n_out // 4, n_out // 4, n_out // 4, n_out)
        layers: list[tuple[str, nn.Module]] = []
        for number, kernel in enumerate(kernels):
            # The first ReLU must not change x, which is added later; the others may work in place.
            layers.append((f"relu_{number + 1}", nn.ReLU(inplace=number > 0)))
            layers.append((f"conv_{number + 1}", Conv(widths[number], widths[number + 1], kernel)))
        self.id_path = nn.Identity() if n_in == n_out else Conv(n_in, n_out, 1)
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.gain)


def groups(n_in: int, widths: Sequence[int], depth: int, kernels: Kernels, resampling: nn.Module) -> nn.Sequential:
    """A group of `depth` blocks per width, with `resampling` between groups. Names are those of the published code."""
    gain = 1 / (len(widths) * depth) ** 2
    layers: dict[str, nn.Module] = {}
    for level, width in enumerate(widths):
        if level:
            layers[f"resample_{level}"] = resampling
        blocks: dict[str, nn.Module] = {}
        for number in range(depth):
            blocks[f"block_{number + 1}"] = Block(width if number else n_in, width, kernels, gain)
        layers[f"group_{level + 1}"] = nn.Sequential(OrderedDict(blocks))
        n_in = width
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True)
class DallE:
    """Configuration of the tokenizer. The defaults are those of the public one."""

    vocab_size: int = setting(8192, "visual tokens that there are", "DALL-E, appendix A; BEiT §2.1.2")
    stride: int = setting(8, "pixels between tokens", "DALL-E, appendix A")
    in_chans: int = setting(3, "channels of an image")
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
        return seeded(seed, lambda: DallETokenizer(self))


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
        return self.pixel_distribution(codes)

    def features(self, images: Tensor) -> Float[Tensor, "B D h w"]:
        """The output of the encoder for images, uint8 or float in [0, 1]."""
        x = (1 - 2 * LAPLACE_EPSILON) * as_unit_range(images) + LAPLACE_EPSILON
        features: Tensor = self.encoder(self.embed(x.contiguous(memory_format=torch.channels_last)))
        return features.relu()

    def pixel_distribution(
        self, codes: Float[Tensor, "B d h w"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """μ and ln b of the logit-Laplace distribution of every sub-pixel, for codebook vectors."""
        pixels: Tensor = self.to_pixels(self.decoder(codes).relu()).float()
        mean, log_scale = pixels.chunk(2, dim=1)
        return mean, log_scale

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The most likely visual token at every position."""
        positions = self.features(images).permute(0, 2, 3, 1)
        weight = self.to_logits.weight[:, :, 0, 0].to(positions.dtype)
        at_once = positions_per_chunk(self.vocab_size, weight.device)  # all logits would be the largest tensor by far
        parts = positions.flatten(0, 2).split(at_once)
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
        mean, _ = self.pixel_distribution(codes.permute(0, 3, 1, 2))
        return most_likely_pixels(mean).clamp(0, 1)

    def _scores(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        with float32(features):
            return F.linear(features.float(), self.to_logits.weight[:, :, 0, 0], self.to_logits.bias)
