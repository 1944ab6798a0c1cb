"""What tokenizers that learn from the features of a teacher, a trained network, have in common.

The teacher decides the size of the images and the grid of the tokens. A code decodes to the mean of its patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require, setting
from smalti.core.errors import UsageError
from smalti.functional.codebook import default_vocab_size
from smalti.functional.patches import patchify
from smalti.models.vit import VisionTransformer, ViT, as_unit_range, feature_block, first_blocks
from smalti.tokenizers.image_tokenizer import MAX_VOCAB
from smalti.tokenizers.trunk import float32

FIT_IMAGES = 16_384
"""Images that such a tokenizer is usually fitted to, fewer where they have more than a million patches."""
CHUNK = 64
"""Images in a forward pass while it is fitted."""
_MAX_PATCHES = 1 << 20
"""The most patches that it is fitted to: 256 MB with 64 numbers each."""


@dataclass(frozen=True)
class TeacherBased:
    """What the configurations of tokenizers that learn from a teacher share."""

    teacher: str = setting("", "MODEL whose features are clustered: a run, checkpoint, bundle or import", resume="free")
    layer: int | None = setting(None, "block of the teacher, counted from 1; none: two thirds up", "HuBERT: half")
    vocab_size: int = setting(0, "visual tokens; 0: one for 500 of those of the training images, see smalti plan")

    def __post_init__(self) -> None:
        require(self.layer is None or self.layer >= 1, f"layer is {self.layer}", "blocks are counted from 1")
        few_or_many = self.vocab_size == 0 or 2 <= self.vocab_size <= MAX_VOCAB
        require(few_or_many, f"a vocabulary of {self.vocab_size}", f"use 2 to {MAX_VOCAB}, or 0 for a size by images")

    @property
    def backbone(self) -> ViT | None:
        """The configuration of the network that reads images; None until a teacher is read."""
        raise NotImplementedError

    @property
    def known_backbone(self) -> ViT:
        """The configuration of the network that reads images.

        Raises:
            UsageError: there is none yet.
        """
        if self.backbone is None:
            raise UsageError("no teacher given", fix="use --tokenizer.teacher MODEL, as of smalti pretrain or import")
        return self.backbone

    @property
    def stride(self) -> int:
        """Pixels between tokens: a patch of the teacher."""
        return self.known_backbone.patch_size

    @property
    def in_chans(self) -> int:
        return self.known_backbone.in_chans

    @property
    def max_fit_images(self) -> int:
        """How many images it is fitted to, at most: those of a million patches."""
        rows, columns = self.known_backbone.grid
        return max(1, _MAX_PATCHES // (rows * columns))

    def with_teacher(self, teacher: VisionTransformer) -> tuple[Self, VisionTransformer]:
        """The configuration with what is known of a teacher, and the part of the teacher that is used (`cut_teacher`).

        Raises:
            UsageError: there is no such block.
        """
        raise NotImplementedError

    def cut_teacher(self, teacher: VisionTransformer) -> VisionTransformer:
        """The teacher up to the block whose features are used, without a final norm, frozen.

        Without a `layer` that is its `feature_block`, also of the encoder of a decoder: tokens are to be of what is in
        a patch, not of what a decoder reads. Of a network that was cut after a block, that block.

        Raises:
            UsageError: there is no such block.
        """
        blocks = teacher.config.depth
        layer = self.layer or (feature_block(blocks) if isinstance(teacher.norm, nn.LayerNorm) else blocks)
        require(layer <= blocks, f"layer {layer} of a teacher of {blocks} blocks", f"use 1 to {blocks}")
        return without_norm(first_blocks(teacher, layer))

    def with_vocab_size(self, num_images: int) -> Self:
        """The configuration with a vocabulary for so many training images, where `vocab_size` is 0."""
        rows, columns = self.known_backbone.grid
        return replace(self, vocab_size=self.vocab_size or default_vocab_size(num_images, rows * columns))


def without_norm(backbone: VisionTransformer) -> VisionTransformer:
    """The network, whose output is that of its last block from now on, frozen."""
    backbone.norm = nn.Identity()
    return backbone.eval().requires_grad_(False)


def normalised_features(backbone: VisionTransformer, images: Tensor) -> Float[Tensor, "B N D"]:
    """The output of the last block, with mean 0 and variance 1 in every patch, in float32.

    Raises:
        UsageError: images of another size than the network takes.
    """
    features = backbone.encode(backbone.embed(images)).patches.float()
    with float32(images):
        return F.layer_norm(features, features.shape[-1:])


def iter_features(backbone: VisionTransformer, images: Tensor) -> Iterator[Float[Tensor, "b N D"]]:
    """The normalised features of many images, chunk by chunk, in float64 on the CPU.

    So sums of them hardly depend on the size of the chunks. The network stays on its device.
    """
    for part in images.split(CHUNK):
        yield normalised_features(backbone, part.to(backbone.cls_token.device)).cpu().double()


def mean_patches(images: Tensor, ids: Int[Tensor, "B N"], vocab_size: int, size: int) -> Float[Tensor, "V P"]:
    """The mean patch of each code, in [0, 1]; of one that no patch has, the mean of all."""
    sums = torch.zeros(vocab_size, images.shape[1] * size**2)
    counts = torch.bincount(ids.flatten(), minlength=vocab_size)
    for part, found in zip(images.split(CHUNK), ids.split(CHUNK), strict=True):
        sums.index_add_(0, found.flatten(), patchify(as_unit_range(part), size).flatten(0, 1))
    mean = sums.sum(0) / counts.sum()
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], mean)
