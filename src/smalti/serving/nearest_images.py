"""The images of a data set that are nearest to one by the features that `smalti embed` has written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from smalti.core.compute import Compute
from smalti.core.errors import DataError
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.reading import centre_crop, read_square
from smalti.evaluation.feature_files import FeatureFile, text_of
from smalti.evaluation.features import layer_features
from smalti.evaluation.neighbours import nearest
from smalti.evaluation.probe import Scale
from smalti.models.vit import VisionTransformer
from smalti.report.pictures import data_uri

_SIDE = 112
"""Pixels of a picture that is sent."""


@dataclass(frozen=True)
class NearestImages:
    """Features with the network that made them, and the images that they are of, which are read when they are shown.

    Attributes:
        scale: mean and standard deviation of every feature.
    """

    features: FeatureFile
    scale: Scale
    source: ImageDataset
    backbone: VisionTransformer
    compute: Compute

    def __call__(self, picture: UInt8[np.ndarray, "s s C"], count: int) -> list[dict[str, Any]]:
        """The nearest images to a square, best first: key, label, similarity, and the picture or null."""
        crop = centre_crop(picture, self.backbone.config.img_size)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        about = self.features.about
        query = layer_features(self.backbone, pixels.contiguous(), self.compute, about["layer"], about["pooling"])
        similarity, rows = nearest(self.features, query.cpu(), count, self.compute.device, self.scale)
        return [self._image(row, value) for row, value in zip(rows[0].tolist(), similarity[0].tolist(), strict=True)]

    def _image(self, number: int, similarity: float) -> dict[str, Any]:
        row = self.features.row(number)
        there = 0 <= row.position < len(self.source) and text_of(self.source.key(row.position)) == row.key
        try:
            picture = data_uri(read_square(self.source, row.position, _SIDE).image) if there else None
        except DataError:
            picture = None
        return {"key": row.key, "label": row.label or None, "similarity": similarity, "picture": picture}
