"""VQ-KD: an encoder and a codebook that are trained to tell a teacher's features of an image by its tokens (BEiT v2).

image -> encoder, a vision Transformer -> a point of unit length for each patch -> the nearest code
      -> decoder, a small Transformer over all patches -> the teacher's feature of each patch

Encoder and codebook are the tokenizer; the decoder is for training. The teacher is needed for training and is no part
of the tokenizer. A code is painted as the mean of the patches that it was assigned to lately.

Reference: Peng et al. 2022 (BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers); released code,
    modeling_vqkd.py and norm_ema_quantizer.py.
Differs: the teacher's features are of one of its blocks, normalised in every patch and without the mean of their
    position; dead codes are moved to points; codes are directions of moving sums (`functional/codebook.py`).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.functional.codebook import ema_update_means, kmeans, new_codebook, replacements, steps_unused
from smalti.functional.gumbel_relaxation import straight_through
from smalti.functional.patches import patches_to_image
from smalti.models.layers import Init, initialise, seeded
from smalti.models.vit import VisionTransformer, ViT
from smalti.tokenizers.ema_codebook import EMACodebookTokenizer, require_codebook
from smalti.tokenizers.teacher_features import (
    CHUNK,
    TeacherBased,
    iter_features,
    mean_patches,
    normalised_features,
)
from smalti.tokenizers.trunk import float32, known_varied_patches

_POSITIONS = 0.1
"""Amplitude of the encoder's positions at the start."""


@dataclass(frozen=True)
class VQKD(TeacherBased):
    """Configuration of the tokenizer."""

    teacher: str = setting(
        "", "what is reconstructed: a run, bundle or import, or a ViT of timm or transformers", resume="digest"
    )
    depth: int | None = setting(None, "blocks of the encoder; none: as many as the teacher to its block", "BEiT v2: 12")
    decoder_depth: int = setting(3, "blocks of the decoder", "BEiT v2: 3, in its code also 1")
    code_dim: int = setting(32, "dimensions of a code", "BEiT v2")
    commitment: float = setting(1.0, "weight of the squared distance of a point to its code", "BEiT v2; its code: 1/32")
    decay: float = setting(0.99, "a step, of the codes", "released code")
    dead_after: int = setting(100, "steps without a point after which a code moves")
    backbone: ViT | None = setting(None, "the encoder; known when the teacher is read")
    target_dim: int = setting(0, "channels of the teacher's features; known when it is read")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.depth is None or self.depth >= 1, f"an encoder of {self.depth} blocks", "use at least 1")
        require(self.decoder_depth >= 1, f"a decoder of {self.decoder_depth} blocks", "use at least 1")
        require(self.target_dim >= 0, f"target_dim is {self.target_dim}", "use at least 0")
        require_codebook(self)

    def with_teacher(self, teacher: VisionTransformer) -> tuple[Self, VisionTransformer]:
        """The configuration with what is known of a teacher, and the part of the teacher that is used (`cut_teacher`).

        The encoder is as wide as the teacher and of the same variant. It is drawn in ranges that suit its width where
        the teacher was drawn as a ViT-B is. Its positions start small: the codebook starts as k-means on its points,
        and with an amplitude of 1 each code would stand for one position, and go on to.

        Raises:
            UsageError: there is no such block.
        """
        used = self.cut_teacher(teacher)
        vit, init = used.config, used.config.init
        drawn_as: Init = "width" if init == "uniform" else init
        depth = self.depth or vit.depth
        encoder = replace(vit, depth=depth, drop_path_rate=0.0, init=drawn_as, pos_amplitude=_POSITIONS)
        return replace(self, layer=vit.depth, backbone=encoder, target_dim=vit.embed_dim), used

    def build(self, seed: int = 0) -> "VQKDTokenizer":
        """A network with random weights, which are a function of the seed."""
        return seeded(seed, lambda: VQKDTokenizer(replace(self, teacher=""), seed))


class VQKDTokenizer(EMACodebookTokenizer):
    """The code nearest to the encoder's point at each patch.

    Attributes:
        backbone: the encoder.
        mean: of the teacher's normalised features at each position, N x F; only training needs it.
        painted: the mean patch of each code, V x P, with the weights of the moving averages.
    """

    config: VQKD
    mean: Tensor
    painted: Tensor

    def __init__(self, config: VQKD, seed: int) -> None:
        super().__init__(config)
        vit, dim = config.known_backbone, config.code_dim
        self.grid, width = vit.grid, vit.embed_dim
        self.backbone = vit.build(seed)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.add_codebook(config)
        reads_codes = replace(
            vit,
            img_size=vit.grid,
            patch_size=1,
            in_chans=dim,
            depth=config.decoder_depth,
            positions="absolute",
            mean=(0.0,),
            std=(1.0,),
        )
        self.decoder = reads_codes.build(seed + 1)
        self.to_features = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.target_dim))
        for module in (self.to_code, self.to_features):
            initialise(module, vit.init, width)
        self.register_buffer("mean", torch.zeros(vit.grid[0] * vit.grid[1], config.target_dim))
        self.register_buffer("painted", torch.zeros(config.vocab_size, vit.in_chans * vit.patch_size**2))

    @torch.no_grad()
    def fit_to_teacher(self, teacher: VisionTransformer, images: Tensor) -> None:
        """Take the mean of the teacher's features from a sample of the training images, and the teacher's device."""
        self.to(teacher.cls_token.device)
        parts = [features.sum(0) for features in iter_features(teacher, images)]
        self.mean.copy_(torch.stack(parts).sum(0) / len(images))

    @torch.no_grad()
    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Initialise the codebook by k-means on the points of the encoder as it is, and the patches of codes.

        As in k-means on patches, those of a single colour are left out of the centres. Only the encoder runs on its
        device.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        varied, device = known_varied_patches(images, self.stride), self.codes.device
        points = torch.cat([self.points(part.to(device)).flatten(1, 2).cpu() for part in images.split(CHUNK)])
        shown = points[varied]
        self.set_codebook(new_codebook(kmeans(shown, self.vocab_size, order[order < len(shown)])))
        ids = torch.cat([self.nearest(part.to(device)).cpu() for part in points.split(CHUNK)])
        self.painted.copy_(mean_patches(images, ids, self.vocab_size, self.stride))

    def points(self, images: Tensor) -> Float[Tensor, "B h w d"]:
        """The encoder's point at every position, of unit length, in float32.

        Raises:
            UsageError: images of another size than the teacher takes.
        """
        features = self.backbone.encode(self.backbone.embed(images)).patches
        with float32(features):
            return F.normalize(self.to_code(features.float()), dim=-1).unflatten(1, self.config.known_backbone.grid)

    def predicted_features(self, points: Float[Tensor, "B h w d"], ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B N F"]:
        """The teacher's features, decoded from the codes; gradients go to the points (straight-through).

        Only their directions count. In float32.
        """
        codes = straight_through(self.values(ids), points).permute(0, 3, 1, 2)
        features = self.decoder.encode(self.decoder.embed(codes)).patches
        with float32(features):
            return self.to_features(features.float())

    @torch.no_grad()
    def target(self, teacher: VisionTransformer, images: Tensor) -> Float[Tensor, "B N F"]:
        """The teacher's features of every patch, normalised, without the mean of their position, in float32."""
        return normalised_features(teacher, images) - self.mean

    @torch.no_grad()
    def update_codebook_and_patches(
        self, points: Float[Tensor, "n d"], ids: Int[Tensor, "n"], patches: Float[Tensor, "n P"], step: int
    ) -> None:
        """`update_codebook`, and the mean patch of every code.

        Args:
            points: those of the step, of all ranks.
            ids: the code assigned to each.
            patches: the pixels of each, in [0, 1].
            step: number of optimiser steps done.
        """
        painted = ema_update_means(self.painted, self.sizes, patches, ids, self.decay)
        dead, chosen = replacements(steps_unused(self.unused, ids), len(points), step, self.dead_after)
        self.painted.copy_(painted.index_copy(0, dead, patches[chosen]))
        self.update_codebook(points, ids, step)

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The nearest code at every position."""
        return self.nearest(self.points(images))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The mean patches of the codes, in [0, 1]."""
        return patches_to_image(ids, self.painted, self.stride)
