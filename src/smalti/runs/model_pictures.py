"""Images as a tokenizer, a backbone with its tokenizer, or a fine-tuned network sees them, as pictures in columns."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.contracts import Batch, Grid
from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset, embedded
from smalti.data.datasets.folder import FollowLinks
from smalti.data.datasets.open import EMBEDDED, absolute_data
from smalti.data.decode import decode
from smalti.data.formats import ARRAYS, EXTENSIONS
from smalti.data.label_maps import cut
from smalti.data.load import Data
from smalti.data.reading import centre_box, even_sample, read_square, square
from smalti.data.tokens import encode
from smalti.evaluation.features import resized
from smalti.evaluation.inpainting import Inpainter, entropy, inpaint, sample_tokens
from smalti.evaluation.supervised import predict
from smalti.functional.masking import patch_mask
from smalti.functional.metrics import VOID
from smalti.models.decoder import Linear
from smalti.report.figure import figure
from smalti.report.heat_maps import ColourBar, heat_map
from smalti.report.page import template
from smalti.report.pictures import Picture, data_uri, label_colours, scale_of, tile_row, to_pixels, token_colours
from smalti.runs.codes import codebook_examples
from smalti.runs.finetune import Finetune
from smalti.runs.folder import read_config, read_kind, run_folder
from smalti.runs.inpainting_pictures import Columns, completed, painted_in
from smalti.runs.inside import Inside
from smalti.runs.models import load_finetuned, load_inpainter
from smalti.runs.network import network_of, pretrained_layer
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.segmentation_task import Segmentation
from smalti.runs.tokenizers import load_tokenizer, tokenizer_data

SUFFIXES = (".png", ".html", ".htm")
_WIDE = 224
"""Pixels that a small image is wide in a picture."""
_BESIDE = 4
"""Columns of which two grids have room beside each other on a page."""
_LIKELY = 3
"""Classes named for each image, at most."""
_MAX_SAMPLES = 16
_WHITE = 128
"""Grey level from which a pixel of a mask is white."""


@dataclass(frozen=True)
class Show(Inside):
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
    mask: str = setting("", "a picture that is white where patches are masked; empty: masks drawn as in training")
    samples: int = setting(0, "predictions beside the best one, in which tokens are drawn by their probability")
    temperature: float = setting(1.0, "of these draws: below 1 closer to the best guess")
    seed: int = setting(0, "of these draws")
    codes: int = setting(0, "of a tokenizer: so many of its codes, each with places where it occurs; 0: the images")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.images), "no images given", "smalti show MODEL IMAGE...")
        require(self.count >= 1, f"{self.count} images", "use at least 1")
        suffix = Path(self.out).suffix.lower()
        require(suffix in SUFFIXES, f"cannot write pictures to '{self.out}'", "use a name in .html or .png")
        require(0 <= self.samples <= _MAX_SAMPLES, f"{self.samples} samples", f"use 0 to {_MAX_SAMPLES}")
        drawn_at = self.temperature == 1 or bool(self.samples)
        require(drawn_at, f"a temperature of {self.temperature}, and nothing is drawn", "add --samples 3")
        require(0.05 <= self.temperature <= 10, f"a temperature of {self.temperature}", "use 0.05 to 10")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")
        require(self.codes >= 0, f"{self.codes} codes", "use 1 or more, or 0 for the images")


@dataclass(frozen=True)
class ModelPictures:
    """Images as a model sees them, with a caption each, a description and the colour bars of what needs one."""

    columns: Columns
    captions: list[str]
    note: str
    bars: list[ColourBar] = field(default_factory=list)

    def picture(self) -> Picture:
        """All of them as one picture with headings, captions and colour bars."""
        return figure(self.columns, scale_of(self._side, _WIDE), self.captions, self.bars)

    def html(self) -> str:
        """The same for a page, whose style it needs."""
        across = 2 if len(self.columns) <= _BESIDE else 1
        tiles = tile_row(self.columns, scale=scale_of(self._side), captions=self.captions, across=across)
        return "".join([tiles, *(bar.html() for bar in self.bars)])

    def _repr_html_(self) -> str:
        picture = self.picture()
        return template("notebook.html").render(seen=self, picture=data_uri(picture), width=picture.shape[1] // 2)

    @property
    def _side(self) -> int:
        return next(iter(self.columns.values())).shape[2]


def see(config: Show) -> ModelPictures:
    """Images as a model sees them, as `smalti show` draws them.

    Raises:
        DataError: an image cannot be read.
        UsageError: the model has nothing of what is asked for.
    """
    compute = choose_compute(config.device, config.precision)
    looks = {Pretrain.__name__: _show_completed, Finetune.__name__: _show_finetuned}
    look = looks.get(read_kind(config.model), _show_tokenized)
    can_show = look is _show_tokenized or not config.codes
    require(can_show, f"--codes for {config.model}", "give the run of its tokenizer")
    return look(config, compute)


def _show_tokenized(config: Show, compute: Compute) -> ModelPictures:
    """Original | decoded | visual tokens; or codes, and places where they occur."""
    require(not config.wanted, f"{config.model} is a tokenizer; it has no attention, and no features of patches")
    _require_no_predictions(config)
    tokenizer = load_tokenizer(config.model, compute)
    data = _shown(config, tokenizer_data(config.model, tokenizer))
    pixels, *about = _read_images(config, data)
    if config.codes:
        return ModelPictures(*codebook_examples(tokenizer, pixels, config.codes, compute, data.show_channels))
    ids = encode(pixels, tokenizer, compute).view(len(pixels), -1, data.side // tokenizer.stride)
    with torch.no_grad(), compute.autocast():
        decoded = torch.cat([tokenizer.decode(part) for part in ids.split(64)])
    painted = to_pixels(decoded, data.show_channels)
    note = (
        "The image, what its visual tokens say when they are decoded, and the tokens themselves: each in the mean"
        " colour of what it is decoded to on this page."
    )
    columns = {"original": to_pixels(pixels, data.show_channels), "decoded": painted}
    return ModelPictures(
        columns | {"visual tokens": token_colours(ids.cpu().numpy(), painted)}, _captions(*about), note
    )


def _require_no_predictions(config: Show) -> None:
    """Masks and samples are of pretrained networks alone."""
    asked = "--mask" if config.mask else "--samples" if config.samples else ""
    require(not asked, f"{asked} for {config.model}", "masked patches are predicted by a run of smalti pretrain")


def _show_completed(config: Show, compute: Compute) -> ModelPictures:
    """Original | masked | tokenizer | predicted | entropy; of predicted pixels without tokenizer and entropy."""
    run = read_config(config.model, Pretrain)
    try:
        inpainter = load_inpainter(config.model, compute)
    except UsageError:  # it is a backbone alone, or came without its tokenizer
        if not config.wanted:
            raise
        return _show_inside(config, run.data, compute)
    backbone, data = inpainter.model.backbone, _shown(config, run.data)
    pixels, *about = _read_images(config, data)
    batch = inpainter.batch(pixels, _mask(config, backbone.config.grid, isinstance(run.decoder, Linear)))
    seen = _predicted(config, inpainter, batch, _captions(*about), data.show_channels)
    layer = pretrained_layer(backbone, run.decoder)
    columns, note = config.draw(backbone, batch.image, layer, compute) if config.wanted else ({}, "")
    return replace(seen, columns=seen.columns | columns, note=f"{seen.note} {note}".strip())


def _show_inside(config: Show, data: Data, compute: Compute) -> ModelPictures:
    """Original with attention and features, of a network that predicts nothing that could be shown."""
    _require_no_predictions(config)
    network = network_of(config.model, compute)
    pixels, *about = _read_images(config, data)
    images = network.preprocess(pixels)
    columns, note = config.draw(network.backbone, images, network.layer, compute)
    return ModelPictures(
        {"original": to_pixels(images, _shown(config, data).show_channels)} | columns, _captions(*about), note
    )


def _predicted(
    config: Show, inpainter: Inpainter, batch: Batch, captions: list[str], shown: tuple[int, ...] | None
) -> ModelPictures:
    """What is predicted for the masked patches of a batch, how sure that is, and samples."""
    if inpainter.tokenizer is None:
        require(not config.samples, f"{config.model} predicts pixels: nothing can be drawn from them")
        columns, note = painted_in(inpainter, batch, shown)
        return ModelPictures(columns, captions, note)
    mask, index, _ = batch.masks
    log_p, places = inpainter.log_probabilities(batch), index.cpu()
    rows, device = list(zip(log_p, places.tolist(), strict=True)), mask.device
    best = inpaint(inpainter.model, inpainter.tokenizer, batch, inpainter.compute, log_p.argmax(-1).to(device))
    columns, note = completed(best, inpainter.views.backbone.patch_size, shown)
    values = torch.full(mask.shape, torch.nan).scatter(1, places, entropy(log_p))
    values = values.where(mask.cpu(), torch.nan).unflatten(1, inpainter.views.backbone.grid)
    random = float(np.log(log_p.shape[-1]))
    columns["entropy"] = heat_map(values.numpy(), random, "viridis", columns["original"])
    for number in range(config.samples):
        guesses = torch.stack([sample_tokens(row, own, config.temperature, config.seed, number) for row, own in rows])
        sample = inpaint(inpainter.model, inpainter.tokenizer, batch, inpainter.compute, guesses.to(device))
        columns[f"sample {number + 1}"] = to_pixels(sample.predicted, shown)
    if config.samples:
        note += f" Tokens of samples are drawn by their probabilities (temperature {config.temperature:g})."
    bar = ColourBar("entropy", "0", f"{random:.1f} nats: a guess at random")
    return ModelPictures(columns, captions, f"{note} Entropy is that of the prediction, patch by patch.", [bar])


def _mask(config: Show, grid: Grid, sees_all: bool) -> Bool[np.ndarray, "N"] | None:
    """The mask of the picture that is given: its centre square lies over that of every image.

    Raises:
        UsageError: it is smaller than the grid, or masks nothing, or all that an encoder of visible patches would see.
    """
    if not config.mask:
        return None
    picture = decode(Path(config.mask).expanduser(), channels=1)[..., 0]
    height, width = picture.shape
    top, left, side, _ = centre_box(height, width, (1, 1))
    size, patches = "{} x {}".format(*grid), grid[0] * grid[1]
    require(
        side >= max(grid),
        f"mask {config.mask} has {height} x {width} pixels for {size} patches",
        "paint at least a pixel for each patch",
    )
    mask = patch_mask(picture[top : top + side, left : left + side] >= _WHITE, grid)
    require(bool(mask.any()), f"mask {config.mask} covers none of {size} patches", "paint white what is masked")
    if mask.all() and not sees_all:
        cause = f"all {patches} are masked, and its encoder sees visible patches alone"
        raise UsageError(
            f"mask {config.mask} leaves {config.model} no patch to see", cause=cause, fix="leave some black"
        )
    return mask


@torch.no_grad()
def _show_finetuned(config: Show, compute: Compute) -> ModelPictures:
    """Original with its most likely classes; of a segmenter, original | predicted, and where there are masks | true."""
    _require_no_predictions(config)
    run, network = read_config(config.model, Finetune), load_finetuned(config.model, compute)
    outputs, size = run_folder(config.model).read_classes(), run.backbone.img_size
    places = config.images
    if isinstance(run.task, Segmentation):
        config = replace(config, images=tuple(map(run.task.images_inside, places)))
    data = _shown(config, replace(run.data, side=size[0]))
    pixels, names, true = _read_images(config, data)
    pixels = resized(InMemoryDataset(pixels, torch.full((len(pixels),), -1)), size).images
    columns, note = {"original": to_pixels(pixels, data.show_channels)}, ""
    if isinstance(run.task, Segmentation):
        scenes = list(pixels.permute(0, 2, 3, 1).numpy())
        guessed = [guess.numpy() for guess in predict(network, scenes, size, run.task.window, compute)]
        columns["predicted"] = np.stack([label_colours(guess, VOID) for guess in guessed])
        said = [", ".join(outputs[number] for number in np.unique(guess)) for guess in guessed]
        note = "The centre of the image, and the class of every pixel as the network says: a colour for each class."
        if all(inside != place for inside, place in zip(config.images, places, strict=True)):
            columns["true"] = _true_maps(places, config.count, run, run.task, outputs)
    else:
        with compute.autocast():
            scores = torch.cat([network(part.to(compute.device)) for part in pixels.split(64)]).float().cpu()
        said = _likely(scores.sigmoid() if run.task.multi_label else scores.softmax(1), outputs)
        note = f"The centre of the image, and the {_LIKELY} most likely classes with their probabilities."
    captions = [
        f"{name}: {guess} (true: {label})" if label else f"{name}: {guess}"
        for name, guess, label in zip(names, said, true, strict=True)
    ]
    drawn, about = config.draw(network.backbone, pixels, run.backbone.depth, compute) if config.wanted else ({}, "")
    return ModelPictures(columns | drawn, captions, f"{note} {about}".strip())


def _likely(shares: Float[Tensor, "n classes"], outputs: tuple[str, ...]) -> list[str]:
    """The most likely classes of each image with their probabilities."""
    best = shares.topk(min(_LIKELY, len(outputs)))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [", ".join(f"{outputs[n]} {share:.0%}" for share, n in zip(*row, strict=True)) for row in rows]


def _true_maps(
    places: tuple[str, ...], count: int, run: Finetune, task: Segmentation, outputs: tuple[str, ...]
) -> UInt8[np.ndarray, "n h w 3"]:
    """The class of every pixel of the centre squares of the same images, as their masks say: a colour for each."""
    painted = []
    for place in places:
        scenes = task.read(place, run.data, outputs, Log())
        for position in even_sample(len(scenes), count):
            label_map = scenes[position].label_map
            assert label_map is not None
            height, width = label_map.shape
            top, left, tall, wide = centre_box(height, width, (1, 1))
            box = (top / height, left / width, tall / height, wide / width)
            painted.append(label_colours(cut(label_map, box, False, run.backbone.img_size), VOID))
    return np.stack(painted)


def _shown(config: Show, data: Data) -> Data:
    """The images of a model, with the channels in pictures that are asked for."""
    return data if config.show_channels is None else replace(data, show_channels=config.show_channels)


def _read_images(config: Show, data: Data) -> tuple[UInt8[Tensor, "B C H W"], list[str], list[str]]:
    """The centre squares of all named images in the size that the model was trained on, their names and true classes.

    A class is empty where it is not known.
    """
    pictures: list[UInt8[np.ndarray, "s s C"]] = []
    names, true = list[str](), list[str]()
    follow = config.follow_links or data.follow_links
    for place in config.images:
        path = Path(place).expanduser()
        if path.suffix.lower() in EXTENSIONS | ARRAYS and not path.is_dir():
            pictures.append(square(decode(path, data.channels, window=data.known_window), data.side))
            names.append(path.name)
            true.append("")
            continue
        held_out = embedded("test").with_channels(data.channels) if place == EMBEDDED else None
        column = data.image_column if absolute_data(place) == absolute_data(data.path) else ""
        asked = replace(data, follow_links=follow, image_column=column)
        source = asked.source(place, part="all") if held_out is None else held_out
        for position in even_sample(len(source), config.count):
            pictures.append(read_square(source, position, data.side).image)
            names.append(source.key(position))
            label = source.label(position)
            true.append(source.classes[label] if label >= 0 else "")
    stacked = np.stack([np.broadcast_to(picture, (data.side, data.side, data.channels)) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), names, true


def _captions(names: list[str], true: list[str]) -> list[str]:
    """The name of each image, with its class where the name does not say it."""
    return [name if label in name else f"{name}: {label}" for name, label in zip(names, true, strict=True)]
