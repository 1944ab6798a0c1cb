"""The computations of a network as modules of one tensor in, some out; and its outputs for comparisons."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from smalti.core.errors import UsageError
from smalti.exporting.subject import Network, Subject
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import VisionTransformer
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


class _Encoder(nn.Module):
    """A tokenizer: images in [0, 1] to visual tokens, B x h x w."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)


class _Decoder(nn.Module):
    """A tokenizer: visual tokens to images in [0, 1]."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens)


def graphs(subject: Subject) -> dict[str, Graph]:
    """The computations of a network by the names of their files.

    Raises:
        UsageError: it is a masked image model, whose masks are part of its input.
    """
    network = subject.network
    if isinstance(network, MaskedImageModel):
        raise UsageError("a masked image model is no function of images alone", fix="export it with --part backbone")
    if isinstance(network, ImageTokenizer):
        return {
            "encoder": Graph(_Encoder(network), "images", ("tokens",), network.stride),
            "decoder": Graph(_Decoder(network), "tokens", ("images",), 1),
        }
    if isinstance(network, VisionTransformer):
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
