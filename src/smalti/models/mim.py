"""Masked image modeling: a backbone, one mask token and a head over the visual tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from smalti.models.initialisation import Init, initialise
from smalti.models.vit import VisionTransformer, ViT


class MaskedImageModel(nn.Module):
    """Predicts the visual tokens of masked patches: p_MIM(z | x^M). Only its backbone is used after pretraining.

    Reference: BEiT §2.3, eq. 1.
    """

    def __init__(self, backbone: VisionTransformer, vocab_size: int, init: Init) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, vocab_size)
        self._initialise_own(init)

    def _initialise_own(self, init: Init) -> None:
        own = nn.Module()
        own.mask_token, own.head = self.mask_token, self.head
        initialise(own, init, self.backbone.embed_dim)

    def forward(
        self,
        images: Tensor,
        mask: Bool[Tensor, "B N"],
        mask_index: Int[Tensor, "B K"],
        key: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B K V"]:
        """Logits over the visual tokens at masked patches. The last block computes outputs for these positions only.

        Args:
            images: B C H W, uint8 or float in [0, 1].
            mask: True where a patch is masked.
            mask_index: positions of the masked patches in [0, N), padded to K.
            key: one key per sample, of which stochastic depth is a function; None keeps every branch.
        """
        tokens = self.backbone.embed(images)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        return self.head(self.backbone.encode(tokens, self.backbone.config.grid, key=key, at=mask_index).patches)


def build_mim(config: ViT, vocab_size: int, seed: int = 0) -> MaskedImageModel:
    """A masked image model with random weights, which are a function of the seed."""
    backbone = config.build(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return MaskedImageModel(backbone, vocab_size, config.init)
