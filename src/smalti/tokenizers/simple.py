"""Baseline tokenizers without training: the token of a patch is its nearest centre in a linear projection.

Both are fitted to a sample of patches by `initialise_from`. A code decodes to the mean of the sample's patches that
were assigned to it.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require, setting
from smalti.core.rng import fold, signed
from smalti.functional.codebook import kmeans, nearest_centre
from smalti.functional.noise import uniform_noise
from smalti.functional.patches import patches_to_image
from smalti.models.vit import as_unit_range
from smalti.tokenizers.image_tokenizer import ImageTokenizer, TokenizerConfig, require_tokens
from smalti.tokenizers.trunk import float32, known_varied_patches, principal_directions

_NOISE = 1e-3
"""Approximate standard deviation of 8-bit rounding of a sub-pixel in [0, 1]; whitening does not amplify less."""


@dataclass(frozen=True)
class KMeansPatches:
    """Configuration of a tokenizer by k-means on patches."""

    vocab_size: int = setting(512, "visual tokens that there are")
    stride: int = setting(8, "pixels between tokens")
    in_chans: int = setting(3, "channels of an image")
    whitening: float = setting(0.0, "power: 0 compares pixels, 1 gives every principal component the same variance")

    def __post_init__(self) -> None:
        require_tokens(self)
        require(0 <= self.whitening <= 1, f"a whitening of {self.whitening}", "use one in [0, 1]")

    def build(self, seed: int = 0) -> "KMeansPatchTokenizer":
        """A tokenizer whose centres are not set yet; nothing is random."""
        return KMeansPatchTokenizer(self)


@dataclass(frozen=True)
class RandomProjection:
    """Configuration of a tokenizer with random unit codes in a random projection of patches (BEST-RQ for speech).

    Reference: Chiu et al., Self-supervised Learning with Random-projection Quantizer, 2022, §3.1.
    Differs: patches are whitened by PCA; BEST-RQ normalises each input dimension separately.
    """

    vocab_size: int = setting(512, "visual tokens that there are", "BEST-RQ §4 uses 8192")
    stride: int = setting(8, "pixels between tokens")
    in_chans: int = setting(3, "channels of an image")
    code_dim: int = setting(16, "dimensions of a code", "BEST-RQ §4")
    whitening: float = setting(0.75, "power, see KMeansPatches; with less a few codes take most patches")

    def __post_init__(self) -> None:
        require_tokens(self)
        require(self.code_dim >= 2, f"codes of {self.code_dim} dimensions", "use at least 2")
        require(0 <= self.whitening <= 1, f"a whitening of {self.whitening}", "use one in [0, 1]")

    def build(self, seed: int = 0) -> "RandomProjectionTokenizer":
        """A tokenizer with codes and projection drawn from the seed."""
        return RandomProjectionTokenizer(self, seed)


class PatchTokenizer(ImageTokenizer):
    """The nearest centre in a linear projection. It has buffers and no parameters."""

    mean: Tensor
    projection: Tensor
    centres: Tensor
    painted: Tensor

    def __init__(self, config: TokenizerConfig, code_dim: int) -> None:
        super().__init__(config)
        pixels = config.in_chans * config.stride**2
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("projection", torch.zeros(code_dim, pixels))
        self.register_buffer("centres", torch.zeros(config.vocab_size, code_dim))
        self.register_buffer("painted", torch.zeros(config.vocab_size, pixels))

    def fit(self, patches: Float[Tensor, "n P"], order: Int[Tensor, "n"]) -> None:
        """Set `projection` and `centres`.

        Args:
            patches: sub-pixels in [0, 1] minus the buffer `mean`.
            order: a random permutation of [0, n).
        """
        raise NotImplementedError

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Fit to a sample. Patches of a single colour are left out of the centres, but not of the means of codes.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        patches = self._patches(images).flatten(0, 2)
        varied = patches[known_varied_patches(images, self.stride).flatten()]
        self.mean.copy_(patches.mean(0))
        self.fit(varied - self.mean, order[order < len(varied)])
        ids = self.encode(images).flatten()
        counts = torch.bincount(ids, minlength=self.vocab_size)[:, None]
        sums = torch.zeros_like(self.painted).index_add_(0, ids, patches)
        self.painted.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), self.mean))

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest centre at every position; among unit centres it has the greatest cosine similarity."""
        with float32(images):
            points = F.linear(self._patches(images) - self.mean, self.projection)
            return nearest_centre(points, self.centres)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The mean patches of the codes, in [0, 1]."""
        return patches_to_image(ids, self.painted, self.stride)

    def _patches(self, images: Tensor) -> Float[Tensor, "B h w P"]:
        return F.pixel_unshuffle(as_unit_range(images), self.stride).permute(0, 2, 3, 1)


class KMeansPatchTokenizer(PatchTokenizer):
    """Centres by k-means on patches."""

    config: KMeansPatches

    def __init__(self, config: KMeansPatches) -> None:
        super().__init__(config, config.in_chans * config.stride**2)

    def fit(self, patches: Float[Tensor, "n P"], order: Int[Tensor, "n"]) -> None:
        """k-means on whitened principal components."""
        self.projection.copy_(whitening(patches, self.config.whitening))
        self.centres.copy_(kmeans(patches @ self.projection.t(), self.vocab_size, order))


class RandomProjectionTokenizer(PatchTokenizer):
    """Centres are random unit vectors."""

    config: RandomProjection

    def __init__(self, config: RandomProjection, seed: int) -> None:
        super().__init__(config, config.code_dim)
        pixels = self.projection.shape[1]
        keys = torch.from_numpy(signed(fold(seed, np.arange(2))))
        self.projection.copy_(uniform_noise(keys[:1], config.code_dim * pixels).view(-1, pixels) - 0.5)
        normal = torch.special.ndtri(uniform_noise(keys[1:], config.vocab_size * config.code_dim))
        self.centres.copy_(F.normalize(normal.view(-1, config.code_dim), dim=1))

    def fit(self, patches: Float[Tensor, "n P"], order: Int[Tensor, "n"]) -> None:
        """Compose the random projection with a whitening of the patches."""
        self.projection.copy_(self.projection @ whitening(patches, self.config.whitening))


def whitening(patches: Float[Tensor, "n P"], power: float) -> Float[Tensor, "P P"]:
    """Principal directions of patches as rows, each divided by its standard deviation to the given power."""
    directions = principal_directions(patches, patches.shape[1])
    spread = (patches @ directions.t()).std(0, correction=0).clamp_min(_NOISE)
    return directions / spread[:, None] ** power
