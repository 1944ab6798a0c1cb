"""`smalti show`: images as a tokenizer, a backbone with its tokenizer, or a fine-tuned network sees them."""

from dataclasses import dataclass, replace
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
from smalti.data.datasets.folder import FollowLinks
from smalti.data.datasets.open import EMBEDDED
from smalti.data.decode import decode
from smalti.data.formats import ARRAYS, EXTENSIONS
from smalti.data.load import Data
from smalti.data.reading import even_sample, read_square, square
from smalti.data.tokens import encode
from smalti.evaluation.supervised import predict
from smalti.functional.metrics import VOID
from smalti.report.page import Section
from smalti.report.pictures import label_colours, png, scale_of, sheet, tile_row, to_pixels, token_colours
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config, read_kind
from smalti.runs.models import load_finetuned
from smalti.runs.pretrain import Pretrain
from smalti.runs.sections import Columns, filled_in, write_page
from smalti.runs.segmentation_task import Segmentation
from smalti.runs.tokenizers import input_of, load_tokenizer

_PAGE, _PICTURE = (".html", ".htm"), ".png"
_LIKELY = 3
"""Classes named for each image, at most."""


@dataclass(frozen=True)
class Show:
    """What to look at, and with which model."""

    model: str
    """A run folder of either stage or of finetune, or an imported tokenizer."""
    images: tuple[str, ...]
    """Image files, or DATA: a folder, a list, shards, ... or 'embedded'."""
    out: str = setting("show.html", "the page (.html) or the picture (.png) to write")
    count: int = setting(12, "images of each DATA, evenly spread")
    show_channels: tuple[int, ...] | None = setting(None, "as for training; none: as of the model")
    follow_links: FollowLinks | None = setting(None, "links of a folder: inside, or all; none: as of the model")
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
    looks = {Pretrain.__name__: _look_completed, Finetune.__name__: _look_finetuned}
    look = looks.get(read_kind(config.model), _look_tokenized)
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
    data = _shown(config, input_of(config.model, tokenizer))
    pixels, names = read_images(config, data)
    ids = encode(pixels.to(compute.device), tokenizer, compute).view(len(pixels), -1, data.side // tokenizer.stride)
    with torch.no_grad(), compute.autocast():
        decoded = torch.cat([tokenizer.decode(part) for part in ids.split(64)])
    painted = to_pixels(decoded, data.show_channels)
    note = (
        "The image, what its visual tokens say when they are decoded, and the tokens themselves: each in the mean"
        " colour of what it is decoded to on this page."
    )
    columns = {"original": to_pixels(pixels, data.show_channels), "decoded": painted}
    return columns | {"visual tokens": token_colours(ids.cpu().numpy(), painted)}, names, note


def _look_completed(config: Show, compute: Compute) -> tuple[Columns, list[str], str]:
    """Original | masked | tokenizer | predicted; without the third for a model that predicts pixels."""
    data = _shown(config, read_config(config.model, Pretrain).data)
    pixels, names = read_images(config, data)
    images = InMemoryDataset(pixels, torch.full((len(pixels),), -1))
    columns, note = filled_in(config.model, images, compute, len(pixels), data.show_channels)
    return columns, names, note


@torch.no_grad()
def _look_finetuned(config: Show, compute: Compute) -> tuple[Columns, list[str], str]:
    """Original with its most likely classes; of a segmenter, original | predicted."""
    run, network = read_config(config.model, Finetune), load_finetuned(config.model, compute)
    outputs, height = RunFolder(Path(config.model).expanduser()).read_classes(), run.backbone.img_size[0]
    data = _shown(config, replace(run.data, side=height))
    pixels, names = read_images(config, data)
    pictures = to_pixels(pixels, data.show_channels)
    if isinstance(run.task, Segmentation):
        scenes = list(pixels.permute(0, 2, 3, 1).numpy())
        guessed = [guess.numpy() for guess in predict(network, scenes, (height, height), run.task.window, compute)]
        painted = np.stack([label_colours(guess, VOID) for guess in guessed])
        found = [", ".join(outputs[number] for number in np.unique(guess)) for guess in guessed]
        captions = [f"{name}: {classes}" for name, classes in zip(names, found, strict=True)]
        note = "The centre of the image, and the class of every pixel as the network says: a colour for each class."
        return {"original": pictures, "predicted": painted}, captions, note
    with compute.autocast():
        scores = torch.cat([network(part.to(compute.device)) for part in pixels.split(64)]).float().cpu()
    shares = scores.sigmoid() if run.task.multi_label else scores.softmax(1)
    best = shares.topk(min(_LIKELY, len(outputs)))
    captions = [
        f"{name}: {', '.join(f'{outputs[n]} {share:.0%}' for share, n in zip(*row, strict=True))}"
        for name, row in zip(names, zip(best.values.tolist(), best.indices.tolist(), strict=True), strict=True)
    ]
    note = f"The centre of the image, and the {_LIKELY} most likely classes with their probabilities."
    return {"original": pictures}, captions, note


def _shown(config: Show, data: Data) -> Data:
    """The images of a model, with the channels in pictures that are asked for."""
    return data if config.show_channels is None else replace(data, show_channels=config.show_channels)


def read_images(config: Show, data: Data) -> tuple[UInt8[Tensor, "B C H W"], list[str]]:
    """The centre squares of all named images, in the size that the model was trained on, and their captions."""
    pictures: list[UInt8[np.ndarray, "s s C"]] = []
    names: list[str] = []
    follow = config.follow_links or data.follow_links
    for place in config.images:
        path = Path(place).expanduser()
        if path.suffix.lower() in EXTENSIONS | ARRAYS and not path.is_dir():
            pictures.append(square(decode(path, data.channels, window=data.known_window), data.side))
            names.append(path.name)
            continue
        held_out = embedded("test").with_channels(data.channels) if place == EMBEDDED else None
        source = replace(data, follow_links=follow).source(place, part="all") if held_out is None else held_out
        for position in even_sample(len(source), config.count):
            pictures.append(read_square(source, position, data.side).pixels)
            names.append(source.key(position))
    stacked = np.stack([np.broadcast_to(picture, (data.side, data.side, data.channels)) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), names
