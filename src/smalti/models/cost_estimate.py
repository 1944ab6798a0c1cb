"""Before a network is built: its parameters, its multiply-adds, and an estimate of the memory that training takes."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smalti.core.contracts import Masking
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.mim import build_mim
from smalti.models.patch_aggregation import PatchAggregation
from smalti.models.vit import ViT

_FLOAT32 = 4
_NO_AGGREGATION = PatchAggregation()


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


class MultiplyAdds(NamedTuple):
    """Multiply-adds of matrix products and convolutions; all else of a Transformer is a few percent of them.

    Attributes:
        forward: of the forward pass.
        training: of the forward and the backward pass.
    """

    forward: int
    training: int


@runtime_checkable
class Buildable(Protocol):
    """The configuration of a network."""

    def build(self) -> nn.Module: ...


def num_parameters(network: Buildable) -> int:
    """How many it is trained with; nothing is allocated. A bare backbone has neither mask token nor head."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network.build().parameters())


def num_parameters_whole(
    config: ViT,
    decoder: Linear | CrossAttention,
    num_outputs: int,
    aggregation: PatchAggregation = _NO_AGGREGATION,
) -> int:
    """How many parameters pretraining has: of backbone, mask token or decoder, `num_outputs` of a head, aggregation."""
    with torch.device("meta"):
        model = build_mim(config, num_outputs, decoder=decoder, aggregation=aggregation)
        return sum(parameter.numel() for parameter in model.parameters())


def encoder_multiply_adds(config: ViT) -> int:
    """Multiply-adds of the features of an image, by torch's count of the operations; nothing is computed."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        config.build()(torch.zeros(1, config.in_chans, *config.img_size))
        return counter.get_total_flops() // 2


def pretraining_multiply_adds(
    config: ViT,
    masking: Masking,
    decoder: Linear | CrossAttention,
    num_outputs: int,
    aggregation: PatchAggregation = _NO_AGGREGATION,
) -> MultiplyAdds:
    """Multiply-adds an image of masked image modeling, by torch's count of the operations; nothing is computed.

    Args:
        num_outputs: of the head for each masked patch: V visual tokens, or the numbers in a patch.
    """
    num_patches, num_masked = config.grid[0] * config.grid[1], masking.count(config.grid)
    with torch.device("meta"):
        model = build_mim(config, num_outputs, decoder=decoder, aggregation=aggregation)
        index = torch.arange(num_masked)[None]
        mask = torch.zeros(1, num_patches, dtype=torch.bool)
        predicted = index[:, : max(1, round(decoder.predicted * num_masked))]
        images = torch.zeros(1, config.in_chans, *config.img_size)
        with FlopCounterMode(display=False) as counter:
            output = model(images, mask, index, at=predicted, aggregated=aggregation.depth > 0)
            forward = counter.get_total_flops()
            output.sum().backward()
            return MultiplyAdds(forward // 2, counter.get_total_flops() // 2)


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
