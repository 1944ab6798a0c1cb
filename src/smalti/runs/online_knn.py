"""Evaluation while a backbone trains: k-NN on a few labelled images, a curve to watch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data
from smalti.evaluation.features import Pooling, extract
from smalti.evaluation.probe import leave_one_out_accuracy
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import ViT

ONLINE = "knn"
"""The figure in metrics.jsonl."""
_POOLINGS: tuple[Pooling, ...] = ("mean",)


@dataclass(frozen=True)
class Online:
    """Labelled images that the backbone is measured on while it trains; none by default."""

    data: str = setting("", "labelled DATA, as a folder of class folders; empty: no evaluation while training")
    every: int = setting(500, "steps")
    limit: int = setting(2000, "labelled images at most, an even sample")

    def __post_init__(self) -> None:
        require(self.every >= 1, f"online.every is {self.every}", "use at least 1")
        require(self.limit >= 2, f"online.limit is {self.limit}", "use at least 2")


class OnlineProbe:
    """k-NN of each labelled image by all others, of the block that is best for it: no figure to quote.

    It works on a copy of the network, never compiled and never in training mode, so training cannot notice.
    """

    def __init__(self, every: int, backbone: ViT, images: InMemoryDataset, compute: Compute) -> None:
        self.every, self.images, self.compute = every, images, compute
        self.copy = backbone.build().to(compute.device)
        self.copy.requires_grad_(False)
        self.copy.eval()

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        assert isinstance(model, MaskedImageModel)
        self.copy.load_state_dict(model.backbone.state_dict())
        features = extract(self.copy, self.images, self.compute, poolings=_POOLINGS, dtype=torch.float16)
        accuracies = [leave_one_out_accuracy(x, self.images.labels) for x in features.values()]
        return {ONLINE: max(accuracies)}


def online_probe(config: Online, backbone: ViT, data: Data, compute: Compute, log: Log) -> OnlineProbe | None:
    """The evaluation that is asked for, on images read as those of the run; None where none is.

    Raises:
        DataError: the images have no labels.
        UsageError: the backbone sees images that are not square.
    """
    if not config.data:
        return None
    height, width = backbone.img_size
    require(height == width, f"online evaluation needs square images, and these are {height}x{width}", "leave it out")
    images = replace(data, path=config.data, side=height, limit=config.limit).load(log).train
    if len(images.classes) < 2:
        fix = "put the images into one folder a class"
        raise DataError(f"no labels in {config.data}", cause="--online.data needs some", fix=fix)
    return OnlineProbe(config.every, backbone, images, compute)
