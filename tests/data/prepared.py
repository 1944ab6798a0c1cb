"""What tests of prepared data sets share: small pictures, and settings for preparing them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.prepared import Settings

SHARD = 5000
"""Bytes of a shard that three of the pictures fill."""


def fill(folder: Path, count: int, first: int = 0) -> Path:
    """Different pictures of noise, 24 x 20 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def raw_settings(images: ImageDataset, **fields: Any) -> Settings:
    """Shorter side 16, pixels without loss."""
    start: dict[str, Any] = {"data": "/data", "source": images.kind, "side": 16, "encoding": "raw", "quality": None}
    start |= {"channels": 3, "limit": None, "length": len(images), "fingerprint": images.fingerprint()}
    return Settings(**start | fields)
