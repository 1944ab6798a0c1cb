"""Masked image modeling: a backbone, a decoder where there is one, and a head over the visual tokens."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from smalti.core.contracts import Features
from smalti.functional.patches import gather_rows, visible_index
from smalti.models.decoder import (
    CrossAttention,
    CrossAttentionBlock,
    CrossAttentionDecoder,
    CrossAttentionLayer,
    Linear,
)
from smalti.models.layers import Attention, Block, Init, initialise, seeded
from smalti.models.patch_aggregation import AggregatingBlocks, PatchAggregation
from smalti.models.vit import VisionTransformer, ViT

_LINEAR = Linear()
_NO_AGGREGATION = PatchAggregation()
_TRAINING_ONLY = ("second_head.", "aggregation.")
"""Beginnings of the names of weights that only training needs."""


def inference_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without those that only training needs: of a second head, and of patch aggregation."""
    return {name: value for name, value in weights.items() if not name.startswith(_TRAINING_ONLY)}


class MaskedImageModel(nn.Module):
    """Predicts the visual tokens of masked patches: p_MIM(z | x^M). Only its backbone is used after pretraining.

    Without a decoder mask tokens stand for masked patches in the encoder, and the head reads its output (BEiT §2.3,
    eq. 1). With one the encoder sees visible patches alone, and the head reads what the decoder makes of its output.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        vocab_size: int,
        init: Init,
        decoder: CrossAttentionDecoder | None = None,
        second_vocab_size: int = 0,
        aggregation: PatchAggregation = _NO_AGGREGATION,
    ) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        width = backbone.embed_dim if decoder is None else decoder.width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if decoder is None else None
        self.head = nn.Linear(width, vocab_size)
        self._initialise_own(init, width)
        self.second_head = nn.Linear(width, second_vocab_size) if second_vocab_size else None  # drawn after the rest
        if self.second_head is not None:
            initialise(self.second_head, init, width)
        self.aggregation = AggregatingBlocks(aggregation, backbone.config) if aggregation.depth else None

    def _initialise_own(self, init: Init, width: int) -> None:
        own = nn.Module()
        own.register_parameter("mask_token", self.mask_token)
        own.head = self.head
        initialise(own, init, width)

    @property
    def decoder_config(self) -> Linear | CrossAttention:
        """The configuration that this decoder, or none, was built from."""
        return _LINEAR if self.decoder is None else self.decoder.config

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the backbone, then those of the decoder."""
        return [*self.backbone.blocks, *(self.decoder.blocks if self.decoder is not None else ())]

    @property
    def attentions(self) -> list[Attention | CrossAttentionLayer]:
        """The attention of each of `blocks`."""
        return [block.attn for block in self.blocks if isinstance(block, Block | CrossAttentionBlock)]

    def forward(
        self,
        images: Tensor,
        mask: Bool[Tensor, "B N"],
        mask_index: Int[Tensor, "B K"],
        key: Int[Tensor, "B"] | None = None,
        at: Int[Tensor, "B P"] | None = None,
        *,
        both: bool = False,
        aggregated: bool = False,
    ) -> Float[Tensor, "B Q V"]:
        """Logits over the visual tokens at masked patches. Nothing is computed that these do not depend on.

        Args:
            images: B C H W, uint8 or float in [0, 1].
            mask: True where a patch is masked.
            mask_index: positions of the masked patches in [0, N), padded to K; with a decoder every image has K.
            key: one key per sample, of which stochastic depth is a function; None keeps every branch.
            at: positions of the masked patches to predict; None: all.
            both: the logits of the second head too, behind those of the first.
            aggregated: those of patch aggregation too, as P more patches, so that Q = 2P; else Q = P.
        """
        at, tokens = mask_index if at is None else at, self.backbone.embed(images)
        visible = None
        if self.decoder is None:
            assert self.mask_token is not None
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
            encoded = self.backbone.encode(tokens, key=key, at=at, layers=aggregated)
        else:
            visible = visible_index(mask, mask.shape[1] - mask_index.shape[1])
            layers = aggregated or self.decoder.layer_weights is not None
            encoded = self.backbone.encode(gather_rows(tokens, visible), key=key, visible=visible, layers=layers)
        features = self._head_input(encoded, visible, at)
        if aggregated:
            assert self.aggregation is not None
            shallow = self.aggregation(encoded, self.backbone, key, at if visible is None else None, visible)
            features = torch.cat([features, self._head_input(shallow, visible, at)], dim=1)
        return self._logits(features, both)

    def _head_input(
        self, encoded: Features, visible: Int[Tensor, "B v"] | None, at: Int[Tensor, "B P"]
    ) -> Float[Tensor, "B P W"]:
        """The input of the head: the encoder's output at the patches `at`, or the output of the decoder at these."""
        if self.decoder is None or visible is None:
            return encoded.patches
        return self.decoder(encoded, visible, at)

    def _logits(self, features: Float[Tensor, "B P D"], both: bool) -> Float[Tensor, "B P V"]:
        first = self.head(features)
        return torch.cat([first, self.second_head(features)], -1) if both and self.second_head is not None else first

    def keep_second_head(self) -> None:
        """Make the second head the only one."""
        assert self.second_head is not None
        self.head, self.second_head = self.second_head, None


def build_mim(
    config: ViT,
    vocab_size: int,
    seed: int = 0,
    decoder: Linear | CrossAttention = _LINEAR,
    second_vocab_size: int = 0,
    aggregation: PatchAggregation = _NO_AGGREGATION,
) -> MaskedImageModel:
    """A masked image model with random weights, which are a function of the seed.

    Args:
        second_vocab_size: outputs of a second head, which has its own visual tokens; 0: none.
        aggregation: the shallow prediction through [S], which is for training.
    """
    backbone = config.build(seed)

    def make() -> MaskedImageModel:
        between = None
        if isinstance(decoder, CrossAttention):
            between = CrossAttentionDecoder(
                decoder, config.grid, config.embed_dim, config.num_heads, config.depth, config.init
            )
        return MaskedImageModel(backbone, vocab_size, config.init, between, second_vocab_size, aggregation)

    return seeded(seed + 1, make)
