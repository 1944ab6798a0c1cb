"""Image classification: a backbone, pooling, and a linear head over the classes."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.models.layers import Init, initialise, seeded
from smalti.models.vit import VisionTransformer, ViT

Pooling: TypeAlias = Literal["mean", "cls"]
"""How the last hidden states become one vector: the mean of the patches, or [S]."""

_HEAD_SCALE = 1e-3


class ImageClassifier(nn.Module):
    """Logits over the classes; parameters have timm's names.

    With mean pooling, the final norm of the backbone is removed and the mean of the patches is normalised (`fc_norm`);
    with [S], the final norm stays. The head starts near zero, so at first all classes are about equally likely.

    Reference: BEiT §2.6; released code, modeling_finetune.py (fc_norm; weight and bias of the head times 0.001).
    """

    def __init__(self, backbone: VisionTransformer, num_classes: int, pooling: Pooling, init: Init) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.fc_norm: nn.Module = nn.Identity()
        if pooling == "mean":
            backbone.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(backbone.embed_dim, eps=1e-6)
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        self._initialise_head(init)

    def _initialise_head(self, init: Init) -> None:
        own = nn.Module()
        own.head = self.head
        initialise(own, init, self.backbone.embed_dim)
        for parameter in self.head.parameters():
            parameter.data.mul_(_HEAD_SCALE)

    def forward(self, images: Tensor, key: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B classes"]:
        """Logits over the classes.

        Args:
            images: B C H W, uint8 or float in [0, 1].
            key: one key per sample, of which stochastic depth is a function; None keeps every branch.
        """
        features = self.backbone.encode(self.backbone.embed(images), key=key)
        pooled = features.patches.mean(dim=1, dtype=torch.float32) if self.pooling == "mean" else features.cls
        return self.head(self.fc_norm(pooled))


def build_classifier(config: ViT, num_classes: int, pooling: Pooling = "mean", seed: int = 0) -> ImageClassifier:
    """A classifier with random weights, which are a function of the seed."""
    backbone = config.build(seed)
    return seeded(seed + 1, lambda: ImageClassifier(backbone, num_classes, pooling, config.init))
