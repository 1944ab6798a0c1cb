"""The computations of a network as modules of one tensor in, some out; and its outputs for comparisons."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import UsageError
from smalti.exporting.loaded_model import LoadedModel, Network
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import VisionTransformer
from smalti.tokenizers.dalle import DallETokenizer
from smalti.tokenizers.dvae import DiscreteVAE
from smalti.tokenizers.image_tokenizer import ImageTokenizer


class Graph(NamedTuple):
    """A module, and the names of its input and its outputs. The first axis of all of them is the batch.

    Attributes:
        sizes: the input may have another height and width too, multiples of this many; 0: only its own.
    """

    module: nn.Module
    input: str
    outputs: tuple[str, ...]
    sizes: int = 0


class _Features(nn.Module):
    """A backbone: images in [0, 1] to [S], B x D, and patches, B x N x D."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features.cls, features.patches


class _FeaturesOfAnySize(_Features):
    """The same with absolute positions, which are interpolated to the size of the images, as by `resize_positions`."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        backbone, size = self.backbone, self.backbone.patch_size
        assert backbone.pos_embed is not None
        tokens = backbone.patch_embed(images)
        table = backbone.pos_embed[:, 1:].unflatten(1, backbone.config.grid).permute(0, 3, 1, 2)
        table = F.interpolate(table, (images.shape[2] // size, images.shape[3] // size), mode="bicubic")
        cls = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        x = torch.cat([cls, tokens + table.flatten(2).transpose(1, 2)], dim=1)
        for block in backbone.blocks:
            x = block(x)
        x = backbone.norm(x)
        return x[:, 0], x[:, 1:]


class _Encoder(nn.Module):
    """A tokenizer: images in [0, 1] to visual tokens, B x h x w."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(self.tokenizer, DiscreteVAE | DallETokenizer):  # `encode` loops, as often as sizes say
            return self.tokenizer.logits(images).argmax(1)
        return self.tokenizer.encode(images)


class _Decoder(nn.Module):
    """A tokenizer: visual tokens to images in [0, 1]."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens)


def graphs(loaded: LoadedModel) -> dict[str, Graph]:
    """The computations of a network by the names of their files.

    Raises:
        UsageError: it is a masked image model, whose masks are part of its input.
    """
    network = loaded.network
    if isinstance(network, MaskedImageModel):
        raise UsageError("a masked image model is no function of images alone", fix="export it with --part backbone")
    if isinstance(network, ImageTokenizer):
        return {
            "encoder": Graph(_Encoder(network), "images", ("tokens",), 0 if network.grid else network.stride),
            "decoder": Graph(_Decoder(network), "tokens", ("images",), 1),
        }
    if isinstance(network, VisionTransformer):
        if network.pos_embed is not None:
            return {"model": Graph(_FeaturesOfAnySize(network), "images", ("cls", "patches"), network.patch_size)}
        return {"model": Graph(_Features(network), "images", ("cls", "patches"))}
    return {"model": Graph(network, "images", ("logits",))}


@torch.no_grad()
def outputs(network: Network, images: Tensor) -> dict[str, Tensor]:
    """What a network computes from images in [0, 1], by name; a masked image model of every second patch."""
    if isinstance(network, VisionTransformer):
        features = network(images)
        return {"cls": features.cls, "patches": features.patches}
    if isinstance(network, ImageTokenizer):
        tokens = network.encode(images)
        return {"tokens": tokens, "images": network.decode(tokens)}
    if not isinstance(network, MaskedImageModel):
        return {"logits": network(images)}
    rows, columns = network.backbone.config.grid
    index = torch.arange(1, rows * columns, 2).expand(len(images), -1)
    mask = torch.zeros(len(images), rows * columns, dtype=torch.bool).scatter(1, index, True)
    return {"logits": network(images, mask, index)}


def outputs_of_both(ours: Network, theirs: Network, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What our network and one that was read back compute from images in [0, 1], by name."""
    own, other = (outputs(network, images) for network in (ours, theirs))
    return {name: (value, other[name]) for name, value in own.items()}


def example_of(graph: Graph, loaded: LoadedModel) -> Tensor:
    """An input of two images."""
    shown = loaded.preprocessing
    if graph.input == "images":
        return torch.zeros(2, shown.channels, *shown.size)
    assert isinstance(loaded.network, ImageTokenizer)
    return torch.zeros(2, *(side // loaded.network.stride for side in shown.size), dtype=torch.int64)


def dynamic_shapes(graph: Graph) -> tuple[dict[int, Any]]:
    """Which axes of the input may have any length: the batch, and of tokenizers height and width."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if graph.sizes:
        first = 2 if graph.input == "images" else 1
        for axis, name in ((first, "height"), (first + 1, "width")):
            dim = torch.export.Dim(name)
            axes[axis] = graph.sizes * dim if graph.sizes > 1 else dim
    return (axes,)


@torch.no_grad()
def compared(
    loaded: LoadedModel, images: Tensor, run: Callable[[str, Tensor], Tensor | tuple[Tensor, ...]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Our outputs and those of exported graphs, for the images, for one alone, and where possible for wider ones.

    Args:
        run: the outputs of an exported graph, by its name, for its input.
    """
    pairs, whole = {}, outputs(loaded.network, images)
    for name, graph in graphs(loaded).items():
        given = images if graph.input == "images" else whole[graph.input]
        for output, theirs in zip(graph.outputs, _tuple(run(name, given)), strict=True):
            pairs[output] = (whole[output], theirs)
        for text, batch in _others(graph, given):
            both = zip(graph.outputs, _tuple(graph.module(batch)), _tuple(run(name, batch)), strict=True)
            pairs |= {f"{output}{text}": (ours, theirs) for output, ours, theirs in both}
    return pairs


def _others(graph: Graph, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield " of one", images[:1]
    if graph.sizes:
        yield " of twice the width", torch.cat([images, images.flip(-1)], dim=-1)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Without what exporters of torch warn of, which is about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
