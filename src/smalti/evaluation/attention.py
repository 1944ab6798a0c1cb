"""What patches attend to, in any block of a masked image model: the encoder's, or the decoder's where there is one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.models.decoder import CrossAttentionLayer
from smalti.models.mim import MaskedImageModel


class Attention(NamedTuple):
    """Attention of one image in one block, in [0, 1]. Each row of both together sums to 1.

    Attributes:
        patches: from each patch (row) to each patch (column). A row is NaN where a patch attends to nothing: an encoder
            of visible patches does not have the masked ones, and a decoder has no others. What cannot be seen gets 0.
        cls: from each patch to [S].
    """

    patches: Float[Tensor, "heads N N"]
    cls: Float[Tensor, "heads N"]


@torch.no_grad()
def attention(model: MaskedImageModel, batch: Batch, compute: Compute, layer: int) -> Attention:
    """The attention of a batch of one image that has a mask, in block `layer` of `model.blocks`, counted from 1."""
    assert batch.mask is not None
    assert batch.mask_index is not None
    own, given = model.attentions[layer - 1], list[tuple[Tensor, ...]]()
    hook = own.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    try:
        with compute.autocast():
            model(batch.image, batch.mask, batch.mask_index)
            x, other, *rest = given[0]
            in_encoder = not isinstance(own, CrossAttentionLayer)
            weights = own.weights(x, other) if isinstance(own, CrossAttentionLayer) else own.weights(x, other, rest[1])
    finally:
        hook.remove()
    visible = torch.arange(batch.mask.shape[1], device=x.device)
    if model.decoder is not None:
        visible = (~batch.mask[0]).nonzero().flatten()
    weights = weights[0].float().cpu()
    rows, queries = (weights[:, 1:], visible) if in_encoder else (weights, batch.mask_index[0])
    return _on_the_grid(rows, queries.cpu(), visible.cpu(), batch.mask.shape[1])


def _on_the_grid(rows: Float[Tensor, "heads q k"], queries: Tensor, keys: Tensor, length: int) -> Attention:
    """Attention from `queries` to [S] and `keys`, each placed at its patch."""
    heads = len(rows)
    patches = torch.full((heads, length, length), torch.nan)
    cls = torch.full((heads, length), torch.nan)
    cls[:, queries] = rows[:, :, 0]
    placed = torch.zeros(heads, len(queries), length)
    placed[:, :, keys] = rows[:, :, 1:]
    patches[:, queries] = placed
    return Attention(patches, cls)
