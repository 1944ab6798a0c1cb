"""`smalti show`: pictures of the output of a tokenizer, or of a backbone with its tokenizer, for images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.files import require_place, write_bytes
from smalti.data.datasets.dataset import InMemoryDataset, embedded
from smalti.data.datasets.open import EMBEDDED, open_source
from smalti.data.decode import EXTENSIONS, decode
from smalti.data.load import Data
from smalti.data.reading import even_sample, read_square, square
from smalti.data.tokens import encode
from smalti.report.page import Section
from smalti.report.pictures import png, sheet, tile_row, to_pixels, token_map
from smalti.runs.folder import read_config, read_kind
from smalti.runs.pretrain import Pretrain
from smalti.runs.sections import Columns, filled_in, scale_of, write_page
from smalti.runs.tokenizers import input_of, load_tokenizer

_PAGE, _PICTURE = (".html", ".htm"), ".png"


@dataclass(frozen=True)
class Show:
    """What to look at, and with which model."""

    model: str
    """A run folder of either stage, or an imported tokenizer."""
    images: tuple[str, ...]
    """Image files, or DATA: a folder, a list, shards, ... or 'embedded'."""
    out: str = setting("show.html", "the page (.html) or the picture (.png) to write")
    count: int = setting(12, "images of each DATA, evenly spread")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")

    def __post_init__(self) -> None:
        require(bool(self.images), "no images given", "smalti show MODEL IMAGE...")
        require(self.count >= 1, f"{self.count} images", "use at least 1")
        suffix = Path(self.out).suffix.lower()
        require(suffix in (*_PAGE, _PICTURE), f"cannot write pictures to '{self.out}'", "use a name in .html or .png")


def main(config: Show) -> dict[str, Any]:
    """Write the page or the picture.

    Raises:
        DataError: an image cannot be read.
        OutputError: the file cannot be written; this is checked before anything is computed.
    """
    target = Path(config.out).expanduser()
    require_place(target)
    compute = choose_compute(config.device, config.precision)
    look = _look_completed if read_kind(config.model) == Pretrain.__name__ else _look_tokenized
    columns, names, note = look(config, compute)
    scale = scale_of(columns["original"].shape[2])
    if target.suffix.lower() == _PICTURE:
        write_bytes(target, png(sheet(columns, scale)))
    else:
        tiles = tile_row(columns, scale=scale, captions=names, across=2)
        write_page(target, Path(config.model).name, "Images as the model sees them.", [Section("Views", tiles, note)])
    print(f"written: {target}")
    return {"shown": str(target), "images": len(names)}


def _look_tokenized(config: Show, compute: Compute) -> tuple[Columns, list[str], str]:
    """Original | decoded | visual tokens."""
    tokenizer = load_tokenizer(config.model, compute)
    data = input_of(config.model, tokenizer)
    pixels, names = read_images(config, data)
    ids = encode(pixels.to(compute.device), tokenizer, compute).view(len(pixels), -1, data.side // tokenizer.stride)
    with torch.no_grad(), compute.autocast():
        decoded = torch.cat([tokenizer.decode(part) for part in ids.split(64)])
    colours = token_map(ids.cpu().numpy(), tokenizer.stride)
    note = (
        "The image, what its visual tokens say when they are decoded, and the tokens themselves: a colour for each"
        " number."
    )
    return {"original": to_pixels(pixels), "decoded": to_pixels(decoded), "visual tokens": colours}, names, note


def _look_completed(config: Show, compute: Compute) -> tuple[Columns, list[str], str]:
    """Original | masked | tokenizer | predicted; without the third for a model that predicts pixels."""
    pixels, names = read_images(config, read_config(config.model, Pretrain).data)
    images = InMemoryDataset(pixels, torch.full((len(pixels),), -1))
    columns, note = filled_in(config.model, images, compute, len(pixels))
    return columns, names, note


def read_images(config: Show, data: Data) -> tuple[UInt8[Tensor, "B C H W"], list[str]]:
    """The centre squares of all named images, in the size that the model was trained on, and their captions."""
    pictures: list[UInt8[np.ndarray, "s s C"]] = []
    names: list[str] = []
    for place in config.images:
        path = Path(place).expanduser()
        if path.suffix.lower() in EXTENSIONS and not path.is_dir():
            pictures.append(square(decode(path, data.channels), data.side))
            names.append(path.name)
            continue
        held_out = embedded("test").with_channels(data.channels) if place == EMBEDDED else None
        source = open_source(place, data.channels) if held_out is None else held_out
        for position in even_sample(len(source), config.count):
            pictures.append(read_square(source, position, data.side).pixels)
            names.append(source.key(position))
    stacked = np.stack([np.broadcast_to(picture, (data.side, data.side, data.channels)) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), names
