"""What positions attend to: in any block of a masked image model, and through all blocks of a backbone (rollout)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.models.decoder import CrossAttentionLayer
from smalti.models.layers import Attention as SelfAttention
from smalti.models.layers import Block
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import VisionTransformer


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
    mask, index, _ = batch.masks
    own = model.attentions[layer - 1]
    with _inputs_of([own]) as given, compute.autocast():
        model(batch.image, mask, index)
        weights = _weights(own, given[0])
    in_encoder = not isinstance(own, CrossAttentionLayer)
    visible = torch.arange(mask.shape[1], device=weights.device)
    if model.decoder is not None:
        visible = (~mask[0]).nonzero().flatten()
    weights = weights[0].float().cpu()
    rows, queries = (weights[:, 1:], visible) if in_encoder else (weights, index[0])
    return _on_the_grid(rows, queries.cpu(), visible.cpu(), mask.shape[1])


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


@torch.no_grad()
def block_attentions(
    backbone: VisionTransformer, images: Tensor, compute: Compute
) -> Iterator[Float[Tensor, "B heads S S"]]:
    """The attention of whole images in each block, from the first to the last; on the CPU, one block at a time.

    Args:
        images: B C H W, uint8 or float in [0, 1], of the size of the backbone.

    Yields:
        From each position (row) to each position (column), [S] first, in [0, 1]. Each row sums to 1.
    """
    layers = [block.attn for block in backbone.blocks if isinstance(block, Block)]
    with _inputs_of(layers) as given, compute.autocast():
        backbone(images.to(compute.device))
    for own, inputs in zip(layers, given, strict=True):
        with compute.autocast():
            weights = _weights(own, inputs)
        yield weights.float().cpu()


def rollout(attentions: Iterable[Float[Tensor, "B heads S S"]]) -> Float[Tensor, "B S S"]:
    """How much each position (row) after all blocks is made of each position (column) before them, in [0, 1].

    Heads are averaged, and the residual connection counts for a half: Ã = (A + I) / 2, normalised by row, and the
    result is the product of the Ã of all blocks, the last one first.

    Reference: Abnar & Zuidema 2020, eq. 1.
    """
    joint: Tensor | None = None
    for weights in attentions:
        mixed = (weights.mean(1) + torch.eye(weights.shape[-1])) / 2
        mixed = mixed / mixed.sum(-1, keepdim=True)
        joint = mixed if joint is None else mixed @ joint
    assert joint is not None, "a backbone has a block"
    return joint


@contextmanager
def _inputs_of(layers: Sequence[nn.Module]) -> Iterator[list[tuple[Any, ...]]]:
    """What each of these layers is given meanwhile, in the order in which they run."""
    given = list[tuple[Any, ...]]()
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs)) for layer in layers]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _weights(own: SelfAttention | CrossAttentionLayer, inputs: tuple[Any, ...]) -> Float[Tensor, "B heads q k"]:
    """The attention of a layer for the inputs of its `forward`."""
    if isinstance(own, CrossAttentionLayer):
        return own.weights(*inputs)
    x, bias, _, where = inputs
    return own.weights(x, bias, where)
