"""Before a network is built: its number of parameters, and an estimate of the memory for training a backbone."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from smalti.models.vit import ViT

_FLOAT32 = 4


class Memory(NamedTuple):
    """Memory in bytes.

    Attributes:
        weights: parameters in float32.
        gradients: in float32.
        optimiser: both moments of AdamW in float32.
        activations: tensors that the forward pass saves for the backward pass.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int


@runtime_checkable
class Buildable(Protocol):
    """The configuration of a network."""

    def build(self) -> nn.Module: ...


def num_parameters(network: Buildable) -> int:
    """How many it is trained with; nothing is allocated. A bare backbone has neither mask token nor head."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network.build().parameters())


def training_memory(config: ViT, batch_size: int, dtype: torch.dtype, num_patches: int | None = None) -> Memory:
    """An estimate for the backbone alone, on a CPU and not compiled.

    A compiled block saves less, and fused attention on GPUs saves no scores. Head, loss, tokenizer, EMA and temporary
    tensors are not included.

    Args:
        config: the backbone.
        batch_size: images per step, or per micro-batch.
        dtype: number format of matrix products under autocast; float32 without autocast.
        num_patches: patches that the encoder sees; None: all of the grid.
    """
    tokens = 1 + (config.grid[0] * config.grid[1] if num_patches is None else num_patches)
    weights = _FLOAT32 * num_parameters(config)
    return Memory(weights, weights, 2 * weights, _activations(config, batch_size, dtype.itemsize, tokens))


def _activations(config: ViT, batch_size: int, itemsize: int, tokens: int) -> int:
    width = config.embed_dim
    stream = batch_size * tokens * width * itemsize
    block = _block(config, batch_size, itemsize, tokens)
    kept = config.depth * stream + block if config.grad_checkpointing else config.depth * block
    pixels = batch_size * config.in_chans * config.img_size[0] * config.img_size[1] * itemsize
    return kept + stream + pixels


def _block(config: ViT, batch_size: int, itemsize: int, tokens: int) -> int:
    """Bytes of one block: inputs of norms and matrix products, attention weights, input and output of the GELU."""
    width = config.embed_dim
    hidden = int(width * config.mlp_ratio)
    streams = 8 if config.init_values is None else 10  # LayerScale saves both branches
    values = batch_size * (tokens * (streams * width + 2 * hidden) + config.num_heads * tokens**2)
    copies = 0 if itemsize == _FLOAT32 else width * (4 * width + 2 * hidden)  # of the weight matrices, in bfloat16
    return itemsize * (values + copies)
