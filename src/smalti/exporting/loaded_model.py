"""What is exported: a trained network by itself, cut after a block where that is wanted, and its preprocessing."""

import copy
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor, nn

from smalti.core.config import require
from smalti.core.errors import UsageError
from smalti.data.values import AskedWindow
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel
from smalti.models.segmenter import Segmenter
from smalti.models.vit import VisionTransformer, ViT
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.weights.source import SourceWeights

Network: TypeAlias = VisionTransformer | MaskedImageModel | ImageClassifier | Segmenter | ImageTokenizer

_KINDS: dict[type[nn.Module], str] = {
    VisionTransformer: "backbone",
    MaskedImageModel: "masked image model",
    ImageClassifier: "classifier",
    Segmenter: "segmenter",
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of the network: its centre square, resized, scaled to [0, 1], normalised.

    Attributes:
        size: height and width in pixels.
        mean, std: of pixels in [0, 1], a value for each channel.
        window: the stored values that become 0 and 1; None: all that a format has.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    window: AskedWindow = None

    @property
    def channels(self) -> int:
        """1 grey, 3 RGB."""
        return len(self.mean)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as other libraries give them to a network; ours normalise by themselves."""
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class LoadedModel:
    """A network on the CPU that is ready for use.

    Attributes:
        classes: names of the outputs of a classifier or segmenter.
        side: height and width of the images of a tokenizer, in pixels; of others their backbone says that.
        window: the stored values that were black and white in training; None: all that a format has.
    """

    network: Network
    classes: tuple[str, ...] = ()
    side: int = 0
    window: AskedWindow = None

    @property
    def kind(self) -> str:
        """What the network is, in words."""
        return _KINDS.get(type(self.network), "tokenizer")

    @property
    def backbone(self) -> VisionTransformer:
        """The backbone.

        Raises:
            UsageError: a tokenizer has none.
        """
        if isinstance(self.network, ImageTokenizer):
            raise UsageError("a tokenizer has no backbone", fix="export it --to bundle, onnx or torch-export")
        return self.network if isinstance(self.network, VisionTransformer) else self.network.backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared; a tokenizer takes pixels in [0, 1] as they are."""
        if isinstance(self.network, ImageTokenizer):
            channels = self.network.config.in_chans
            return Preprocessing((self.side, self.side), (0.0,) * channels, (1.0,) * channels, window=self.window)
        config = self.backbone.config
        mean, std = (values * config.in_chans if len(values) == 1 else values for values in (config.mean, config.std))
        return Preprocessing(config.img_size, mean, std, window=self.window)

    def weights(self) -> dict[str, Tensor]:
        """The weights by the names of `MaskedImageModel`, or of our other networks."""
        prefix = "backbone." if isinstance(self.network, VisionTransformer) else ""
        return {prefix + name: value.detach() for name, value in self.network.state_dict().items()}

    def weights_as(self, variant: ViT) -> dict[str, Tensor]:
        """The weights converted to another variant of the backbone; the network computes the same function."""
        config = self.backbone.config
        source = SourceWeights("the model", self.weights(), config.grid, config.num_heads)
        return source.as_configured(variant)

    def backbone_only(self) -> "LoadedModel":
        """The backbone without head and decoder."""
        return LoadedModel(self.backbone, window=self.window)

    def truncated(self, layer: int) -> "LoadedModel":
        """The backbone up to a block, whose output is used as it is, without the final norm.

        Args:
            layer: the last block that is kept, counted from 1.
        """
        depth = self.backbone.config.depth
        require(1 <= layer <= depth, f"layer {layer}", f"the backbone has {depth} blocks, counted from 1")
        backbone = copy.deepcopy(self.backbone)
        backbone.config = replace(backbone.config, depth=layer)
        backbone.blocks, backbone.norm = backbone.blocks[:layer], nn.Identity()
        return LoadedModel(backbone, window=self.window)


def has_norm(backbone: VisionTransformer) -> bool:
    """Whether the output of the last block is normalised."""
    return not isinstance(backbone.norm, nn.Identity)
