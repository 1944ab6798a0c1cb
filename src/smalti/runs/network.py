"""A trained network with the preprocessing that it was trained with: `load` it, and take features of images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require
from smalti.core.errors import UsageError
from smalti.core.notebook import facts_table
from smalti.data.decode import decode, from_pillow
from smalti.data.reading import centre_box, centre_crop
from smalti.data.transforms.augment import resample
from smalti.data.transforms.views import Crop
from smalti.data.values import Window
from smalti.evaluation.features import POOLINGS, Pooling, layer_features
from smalti.models.classifier import ImageClassifier
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.mim import MaskedImageModel
from smalti.models.segmenter import Segmenter
from smalti.models.vit import VisionTransformer, feature_block
from smalti.runs.finetune import Finetune
from smalti.runs.folder import read_config, read_kind, run_folder, run_of
from smalti.runs.models import load_finetuned, load_pretrained
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenizers import load_tokenizer as load_tokenizer_onto
from smalti.tokenizers.image_tokenizer import ImageTokenizer

Picture: TypeAlias = str | os.PathLike[str] | Image.Image
"""An image file, or an image of Pillow."""

_CHUNK = 64
"""Files decoded before their features are computed."""


@dataclass(frozen=True)
class Network:
    """A trained network, in evaluation mode and without gradients: `backbone.requires_grad_(True).train()` has them.

    Attributes:
        module: the network with its head: a masked image model, a classifier or a segmenter; a backbone has none.
        compute: where it is, and in which number format it computes.
        layer: the block whose features are taken where none is named, counted from 1: two thirds up a network that
            masked image modeling without a decoder has trained, whose last blocks are busy with tokens; else the last,
            also of a bundle that was cut after a block.
        classes: of a fine-tuned network, the name of each class.
        window: the stored values of files that were black and white in training; None: all that a format has.
    """

    module: VisionTransformer | MaskedImageModel | ImageClassifier | Segmenter
    compute: Compute
    layer: int
    classes: tuple[str, ...] = ()
    window: Window | None = None

    @property
    def backbone(self) -> VisionTransformer:
        """The network without its head."""
        return self.module if isinstance(self.module, VisionTransformer) else self.module.backbone

    def _repr_html_(self) -> str:
        config, parameters = self.backbone.config, sum(part.numel() for part in self.module.parameters())
        facts = {
            "images": f"{config.img_size[0]} x {config.img_size[1]} pixels, channels: {config.in_chans}",
            "patches": f"{config.grid[0]} x {config.grid[1]} of {config.patch_size} x {config.patch_size} pixels",
            "blocks": f"{config.depth} of width {config.embed_dim} with {config.num_heads} heads",
            "parameters": parameters,
            "features": f"of block {self.layer}, where none is named",
        }
        classes = {"classes": self.classes} if self.classes else {}
        return facts_table(facts | classes, f"{type(self.module).__name__}, on {self.compute.device.type}")

    def features(
        self, images: Tensor | Picture | Sequence[Picture], layer: int | None = None, pooling: Pooling = "mean"
    ) -> Float[Tensor, "B F"]:
        """One vector for each image, as `smalti evaluate` measures them: before the final norm, float32, on the CPU.

        Args:
            images: as of `preprocess`.
            layer: a block, counted from 1; None for the default one.
            pooling: `mean` of the patches, `cls` token, `both` of them, or `2x2`, the means of four quarters.

        Raises:
            DataError: an image cannot be read.
            UsageError: there is no such layer or pooling, or images have another number of channels.
        """
        layer = self.layer_named(layer)
        require(pooling in POOLINGS, f"pooling is '{pooling}'", f"there are: {', '.join(POOLINGS)}")
        parts = [images]
        if not isinstance(images, Tensor | str | os.PathLike | Image.Image):
            parts = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)] or [images]
        found = [layer_features(self.backbone, self.preprocess(part), self.compute, layer, pooling) for part in parts]
        return torch.cat(found).cpu()

    def preprocess(self, images: Tensor | Picture | Sequence[Picture]) -> Tensor:
        """The centre of images in the size that the network takes; it normalises pixels itself.

        Args:
            images: a tensor B C H W of any size, uint8 or float in [0, 1], or one or several files or Pillow images.

        Returns:
            B C h w, uint8 or float in [0, 1].
        """
        config = self.backbone.config
        if isinstance(images, Tensor):
            return _fitted(images, config.in_chans, config.img_size)
        pictures = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
        require(len(pictures) > 0, "no images given")
        size = config.img_size
        crops = [centre_crop(_pixels(picture, config.in_chans, max(size), self.window), size) for picture in pictures]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()

    def layer_named(self, layer: int | None) -> int:
        """The number of a block, or of the default one.

        Raises:
            UsageError: there is no such block.
        """
        layer, depth = self.layer if layer is None else layer, self.backbone.config.depth
        require(1 <= layer <= depth, f"layer {layer} of a network of {depth} blocks", f"use 1 to {depth}")
        return layer


def load(
    model: str | os.PathLike[str], device: Device = "auto", precision: Precision = "fp32"
) -> Network | ImageTokenizer:
    """What a folder holds: a network of `pretrain` or `finetune`, or the tokenizer of `train-tokenizer` or `import`.

    Args:
        model: a run folder, one of its checkpoints (RUN/checkpoints/step-...), a bundle (`smalti export`), or what
            `smalti import` has written.
        device: where to compute.
        precision: number format of networks, as of the command line.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
    """
    kind = read_kind(os.fspath(model))
    return (load_network if kind in (Pretrain.__name__, Finetune.__name__) else load_tokenizer)(
        model, device, precision
    )


def load_network(model: str | os.PathLike[str], device: Device = "auto", precision: Precision = "fp32") -> Network:
    """The network of a run of `pretrain` or `finetune`, with its selected weights. Arguments and errors as of `load`.

    Raises:
        UsageError: the folder holds a tokenizer.
    """
    return network_of(os.fspath(model), choose_compute(device, precision))


def network_of(run: str, compute: Compute) -> Network:
    """As `load_network`, where it is decided how to compute."""
    kind = read_kind(run)
    if kind == Finetune.__name__:
        tuned = load_finetuned(run, compute)
        classes, window = run_folder(run).read_classes(), read_config(run, Finetune).data.known_window
        return Network(tuned, compute, tuned.backbone.config.depth, classes, window)
    if kind != Pretrain.__name__:
        raise UsageError(f"{run} is {run_of(kind)}", cause="features are those of a pretrained or fine-tuned network")
    config, model = read_config(run, Pretrain), load_pretrained(run, compute)
    network = Network(model, compute, 0, window=config.data.known_window)
    return replace(network, layer=pretrained_layer(network.backbone, config.decoder))


def pretrained_layer(backbone: VisionTransformer, decoder: Linear | CrossAttention) -> int:
    """The block of a pretrained backbone whose features are taken where none is named (see `Network.layer`)."""
    depth, whole = backbone.config.depth, isinstance(backbone.norm, nn.LayerNorm)
    return feature_block(depth) if isinstance(decoder, Linear) and whole else depth


def load_tokenizer(
    model: str | os.PathLike[str], device: Device = "auto", precision: Precision = "fp32"
) -> ImageTokenizer:
    """The tokenizer in a folder: images to visual tokens by `encode`, and back by `decode`. Arguments as of `load`.

    Raises:
        UsageError: the folder holds another run.
    """
    return load_tokenizer_onto(os.fspath(model), choose_compute(device, precision))


def _pixels(picture: Picture, channels: int, side: int, window: Window | None) -> NDArray[np.uint8]:
    """(H, W, C); files are decoded to a shorter side of about `side` pixels."""
    if isinstance(picture, Image.Image):
        return from_pillow(picture, channels, window)
    return decode(Path(picture).expanduser(), channels, side, window)


def _fitted(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """The centre of images (B, C, H, W) in this size; they stay as they are where they have it."""
    shape = "x".join(map(str, images.shape))
    require(
        images.ndim == 4 and images.shape[1] == channels, f"images of shape {shape}", f"give B x {channels} x H x W"
    )
    require(
        images.dtype == torch.uint8 or images.is_floating_point(),
        f"images of type {images.dtype}",
        "give uint8, or float in [0, 1]",
    )
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    box = np.array(centre_box(height, width, size)) / np.array([height, width, height, width])
    return resample(images, Crop(np.tile(box, (len(images), 1)), np.zeros(len(images), np.bool_)), size)
