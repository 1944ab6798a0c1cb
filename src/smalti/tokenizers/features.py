"""A tokenizer whose tokens are clusters of the features of a trained network, its teacher.

image -> the teacher up to a block -> normalised features of each patch - their mean at that position -> principal
components -> unit length -> the nearest of V centres

Brightness and colour decide which patches of pixels are near each other; what a network has learned decides here. The
teacher is part of the tokenizer and of its weights. A code decodes to the mean of the patches that were assigned to it.

Reference: HuBERT (Hsu et al. 2021, §II.A: clusters of a middle layer of the network of the round before).
Differs: a teacher of images; features without the mean of their position, at unit length.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.core.errors import DataError, UsageError
from smalti.functional.codebook import greatest, kmeans, vocabulary_for
from smalti.functional.patches import constant_patches, patchify
from smalti.models.vit import VisionTransformer, ViT, as_unit_range, feature_block, first_blocks
from smalti.tokenizers.image_tokenizer import MAX_VOCAB, ImageTokenizer
from smalti.tokenizers.trunk import float32

FITTED_TO = 16_384
"""Images that it is usually fitted to, fewer where they have more than a million patches."""
_AT_ONCE = 64
"""Images in a forward pass of the teacher while the tokenizer is fitted."""
_MOST_PATCHES = 1 << 20
"""Patches that it is fitted to, at most: 256 MB with 64 components."""
_POINTS = 1 << 15
"""Points per batch of distances to all centres."""


@dataclass(frozen=True)
class KMeansFeatures:
    """Configuration of a tokenizer by k-means on the features of a teacher."""

    teacher: str = setting("", "MODEL whose features are clustered: a run, checkpoint, bundle or import", resume="free")
    layer: int | None = setting(None, "block of the teacher, counted from 1; none: two thirds up", "HuBERT: half")
    vocab_size: int = setting(0, "visual tokens; 0: one for 500 of those of the training images, see smalti plan")
    components: int = setting(64, "principal components of features that are compared, at most")
    backbone: ViT | None = setting(None, "the teacher up to that block; known when it is read")

    def __post_init__(self) -> None:
        require(self.layer is None or self.layer >= 1, f"layer is {self.layer}", "blocks are counted from 1")
        few_or_many = self.vocab_size == 0 or 2 <= self.vocab_size <= MAX_VOCAB
        require(few_or_many, f"a vocabulary of {self.vocab_size}", f"use 2 to {MAX_VOCAB}, or 0 for a size by images")
        require(self.components >= 2, f"{self.components} principal components", "use at least 2")

    @property
    def taught(self) -> ViT:
        """The configuration of the teacher.

        Raises:
            UsageError: there is none yet.
        """
        if self.backbone is None:
            raise UsageError("no teacher given", fix="use --tokenizer.teacher MODEL, as of smalti pretrain or import")
        return self.backbone

    @property
    def stride(self) -> int:
        """Pixels between tokens: a patch of the teacher."""
        return self.taught.patch_size

    @property
    def in_chans(self) -> int:
        """Channels."""
        return self.taught.in_chans

    @property
    def most_images(self) -> int:
        """How many images it is fitted to, at most: those of a million patches."""
        rows, columns = self.taught.grid
        return max(1, _MOST_PATCHES // (rows * columns))

    def taught_by(self, teacher: VisionTransformer) -> "tuple[KMeansFeatures, VisionTransformer]":
        """The configuration with what is known of a teacher, and the part of the teacher that is used.

        Without a `layer` that is its `feature_block`, also of the encoder of a decoder: clusters are to be of what is
        in a patch, not of what a decoder reads. Of a network that was cut after a block, that block.

        Raises:
            UsageError: there is no such block.
        """
        blocks = teacher.config.depth
        layer = self.layer or (feature_block(blocks) if isinstance(teacher.norm, nn.LayerNorm) else blocks)
        require(layer <= blocks, f"layer {layer} of a teacher of {blocks} blocks", f"use 1 to {blocks}")
        used = first_blocks(teacher, layer)
        return replace(self, layer=layer, backbone=used.config), used

    def sized(self, num_images: int) -> "KMeansFeatures":
        """The configuration with a vocabulary for so many training images, where `vocab_size` is 0."""
        rows, columns = self.taught.grid
        return replace(self, vocab_size=self.vocab_size or vocabulary_for(num_images, rows * columns))

    def build(self, seed: int = 0) -> "KMeansFeatureTokenizer":
        """A tokenizer whose centres are not set yet, with a teacher of random weights."""
        return KMeansFeatureTokenizer(replace(self, teacher=""), seed)


class KMeansFeatureTokenizer(ImageTokenizer):
    """The nearest of V centres to the features of each patch. Its only parameters are those of the teacher, frozen.

    Attributes:
        mean: of the normalised features at each position, N x D.
        directions: principal directions of the rest as rows, d x D; d is at most D.
        centres: V x d.
        painted: the mean patch of each code, V x P.
    """

    config: KMeansFeatures
    mean: Tensor
    directions: Tensor
    centres: Tensor
    painted: Tensor

    def __init__(self, config: KMeansFeatures, seed: int) -> None:
        super().__init__(config)
        vit = config.taught
        self.grid = vit.grid
        self.backbone = self._without_norm(vit.build(seed))
        width, pixels = min(config.components, vit.embed_dim), vit.in_chans * vit.patch_size**2
        self.register_buffer("mean", torch.zeros(vit.grid[0] * vit.grid[1], vit.embed_dim))
        self.register_buffer("directions", torch.zeros(width, vit.embed_dim))
        self.register_buffer("centres", torch.zeros(config.vocab_size, width))
        self.register_buffer("painted", torch.zeros(config.vocab_size, pixels))

    @staticmethod
    def _without_norm(backbone: VisionTransformer) -> VisionTransformer:
        backbone.norm = nn.Identity()
        return backbone.eval().requires_grad_(False)

    def learn_from(self, teacher: VisionTransformer) -> None:
        """Use the weights of a teacher, which `taught_by` has cut, and its device."""
        self.backbone = self._without_norm(teacher)
        self.to(teacher.cls_token.device)

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Fit to a sample, in memory that does not grow with the width of the teacher.

        Means and directions are of all patches. As in k-means on patches, those of a single colour are left out of the
        centres, but not of the mean patches of codes. Only the teacher runs on its device.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        parts = images.split(_AT_ONCE)
        varied = torch.cat([~constant_patches(part, self.stride) for part in parts])
        if not varied.any():
            raise DataError("every patch of the images has a single colour", fix="train on images that show something")
        self._fit_projection(images)
        points = torch.cat([self.points(self._placed(part)).cpu() for part in parts])
        shown = points[varied]
        self.centres.copy_(kmeans(shown, self.vocab_size, order[order < len(shown)]))
        ids = torch.cat([self.nearest(self._placed(part)).cpu() for part in points.flatten(0, 1).split(_POINTS)])
        self._fit_paint(images, ids.view(varied.shape))

    def _fit_projection(self, images: Tensor) -> None:
        """Set means and principal directions; sums are in float64 on the CPU, so that batches do not matter."""
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        squares = torch.zeros(total.shape[1], total.shape[1], dtype=torch.float64)
        for part in images.split(_AT_ONCE):
            features = self._normalised(self._placed(part)).cpu().double()
            total += features.sum(0)
            squares += features.flatten(0, 1).t() @ features.flatten(0, 1)
        mean = total / len(images)
        self.mean.copy_(mean)
        covariance = squares / (len(images) * len(mean)) - mean.t() @ mean / len(mean)
        _, vectors = torch.linalg.eigh(covariance)
        self.directions.copy_(vectors.flip(1).t()[: len(self.directions)])

    def _fit_paint(self, images: Tensor, ids: Int[Tensor, "B N"]) -> None:
        """Set the mean patch of each code; of one that no patch has, the mean of all."""
        sums, counts = torch.zeros(self.painted.shape), torch.bincount(ids.flatten(), minlength=self.vocab_size)
        for part, found in zip(images.split(_AT_ONCE), ids.split(_AT_ONCE), strict=True):
            sums.index_add_(0, found.flatten(), patchify(as_unit_range(part), self.stride).flatten(0, 1))
        mean = sums.sum(0) / counts.sum()
        self.painted.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], mean))

    def _placed(self, some: Tensor) -> Tensor:
        return some.to(self.mean.device)

    def points(self, images: Tensor) -> Float[Tensor, "B N d"]:
        """The principal components of the features of every patch, at unit length, in float32.

        Raises:
            UsageError: images of another grid of patches than that of the teacher.
        """
        normal = self._normalised(images)
        with float32(images):
            return F.normalize(F.linear(normal - self.mean, self.directions), dim=-1)

    def _normalised(self, images: Tensor) -> Float[Tensor, "B N D"]:
        """The output of the last block, with mean 0 and variance 1 in every patch, in float32."""
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        features = self.backbone.encode(self.backbone.embed(images), grid).patches.float()
        with float32(images):
            return F.layer_norm(features, features.shape[-1:])

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The index in [0, V) of the nearest centre."""
        with float32(points):
            return greatest(F.linear(points, self.centres, -0.5 * self.centres.square().sum(1)))

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest centre at every position."""
        return self.nearest(self.points(images)).unflatten(1, self.config.taught.grid)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The mean patches of the codes, in [0, 1]."""
        return F.pixel_shuffle(F.embedding(ids, self.painted).permute(0, 3, 1, 2), self.stride)
