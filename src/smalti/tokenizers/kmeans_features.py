"""A tokenizer whose tokens are clusters of the features of a trained network, its teacher.

image -> the teacher up to a block -> normalised features of each patch - their mean at that position -> principal
components -> unit length -> the nearest of V centres

Brightness and colour decide which patches of pixels are near each other; what a network has learned decides here. The
teacher is part of the tokenizer and of its weights. A code decodes to the mean of the patches that were assigned to it.

Reference: HuBERT (Hsu et al. 2021, §II.A: clusters of a middle layer of the network of the round before).
Differs: a teacher of images; features without the mean of their position, at unit length.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.config import require, setting
from smalti.functional.codebook import kmeans, nearest_centre
from smalti.functional.patches import patches_to_image
from smalti.models.vit import VisionTransformer, ViT
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.teacher_features import (
    CHUNK,
    TeacherBased,
    iter_features,
    mean_patches,
    normalised_features,
    without_norm,
)
from smalti.tokenizers.trunk import float32, known_varied_patches

_POINTS = 1 << 15
"""Points per batch of distances to all centres."""


@dataclass(frozen=True)
class KMeansFeatures(TeacherBased):
    """Configuration of a tokenizer by k-means on the features of a teacher."""

    components: int = setting(64, "principal components of features that are compared, at most")
    backbone: ViT | None = setting(None, "the teacher up to that block; known when it is read")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.components >= 2, f"{self.components} principal components", "use at least 2")

    def with_teacher(self, teacher: VisionTransformer) -> tuple[Self, VisionTransformer]:
        """The configuration with what is known of a teacher, and the part of the teacher that is used (`cut_teacher`).

        Raises:
            UsageError: there is no such block.
        """
        used = self.cut_teacher(teacher)
        return replace(self, layer=used.config.depth, backbone=used.config), used

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
        vit = config.known_backbone
        self.grid = vit.grid
        self.backbone = without_norm(vit.build(seed))
        width, pixels = min(config.components, vit.embed_dim), vit.in_chans * vit.patch_size**2
        self.register_buffer("mean", torch.zeros(vit.grid[0] * vit.grid[1], vit.embed_dim))
        self.register_buffer("directions", torch.zeros(width, vit.embed_dim))
        self.register_buffer("centres", torch.zeros(config.vocab_size, width))
        self.register_buffer("painted", torch.zeros(config.vocab_size, pixels))

    def fit_to_teacher(self, teacher: VisionTransformer, images: Tensor) -> None:
        """Use the weights of a teacher, which `with_teacher` has cut, and its device; images have no part in it."""
        self.backbone = teacher
        self.to(teacher.cls_token.device)

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Fit to a sample, in memory that does not grow with the width of the teacher.

        Means and directions are of all patches. As in k-means on patches, those of a single colour are left out of the
        centres, but not of the mean patches of codes. Only the teacher runs on its device.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        varied = known_varied_patches(images, self.stride)
        self._fit_projection(images)
        points = torch.cat([self.points(self._to_device(part)).cpu() for part in images.split(CHUNK)])
        shown = points[varied]
        self.centres.copy_(kmeans(shown, self.vocab_size, order[order < len(shown)]))
        ids = torch.cat([self.nearest(self._to_device(part)).cpu() for part in points.flatten(0, 1).split(_POINTS)])
        self.painted.copy_(mean_patches(images, ids.view(varied.shape), self.vocab_size, self.stride))

    def _fit_projection(self, images: Tensor) -> None:
        """Set means and principal directions; sums are in float64 on the CPU, so that batches do not matter."""
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        squares = torch.zeros(total.shape[1], total.shape[1], dtype=torch.float64)
        for features in iter_features(self.backbone, images):
            total += features.sum(0)
            squares += features.flatten(0, 1).t() @ features.flatten(0, 1)
        mean = total / len(images)
        self.mean.copy_(mean)
        covariance = squares / (len(images) * len(mean)) - mean.t() @ mean / len(mean)
        _, vectors = torch.linalg.eigh(covariance)
        self.directions.copy_(vectors.flip(1).t()[: len(self.directions)])

    def _to_device(self, part: Tensor) -> Tensor:
        return part.to(self.mean.device)

    def points(self, images: Tensor) -> Float[Tensor, "B N d"]:
        """The principal components of the features of every patch, at unit length, in float32.

        Raises:
            UsageError: images of another grid of patches than that of the teacher.
        """
        normal = normalised_features(self.backbone, images)
        with float32(images):
            return F.normalize(F.linear(normal - self.mean, self.directions), dim=-1)

    def nearest(self, points: Float[Tensor, "*B d"]) -> Int[Tensor, "*B"]:
        """The index in [0, V) of the nearest centre."""
        with float32(points):
            return nearest_centre(points, self.centres)

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest centre at every position."""
        return self.nearest(self.points(images)).unflatten(1, self.config.known_backbone.grid)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The mean patches of the codes, in [0, 1]."""
        return patches_to_image(ids, self.painted, self.stride)
