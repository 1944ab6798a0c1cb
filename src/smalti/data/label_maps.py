"""Semantic segmentation datasets: images and masks with the same names; both get the same crop and mirror."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from smalti.core.contracts import Sample
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.core.rng import Keys
from smalti.data.datasets.dataset import ImageDataset, Subset
from smalti.data.datasets.folder import Folder, FollowLinks
from smalti.data.datasets.labels import NONE
from smalti.data.decode import read_file, turn_of, upright
from smalti.data.loader import SampledBatch, Views, views_of
from smalti.data.mask_ids import Chosen, MaskTurn, colours_of, is_voc, mask_turn, nearest
from smalti.data.reading import even_sample, map_images
from smalti.data.transforms.views import Box, TwoViews
from smalti.data.values import Window
from smalti.functional.metrics import VOID

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FIX = "write PNGs of 8-bit grey, the class of each pixel"
_LIST = f"{_FIX}; where these are classes: --task.ids auto"
_ONE_BIT = "it has 1 bits a pixel"
_DEPTH, _COLOURS = 24, 25
"""Where a PNG says how many bits a value has, and what its values are."""
_PALETTE = 3
_NOT_GREY = {2: "it has colours", 4: "it has transparency", 6: "it has colours and transparency"}

_THREADS = 2
_Key = tuple[int, int]
"""Position and key of an image: what it looks like is a function of both."""


@dataclass(frozen=True)
class Numbering:
    """Maps the ids in mask files to class numbers: all ids up to the last one except void, or those listed, in order.

    Attributes:
        void: the id of pixels without a class; they are ignored everywhere.
        num_classes: number of ids that are classes.
        chosen: the ids that are classes, where they are listed, and what others are.
    """

    void: int
    num_classes: int
    chosen: Chosen | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        if self.chosen is not None:
            return self.chosen.ids
        return tuple(number for number in range(256) if number != self.void)[: self.num_classes]

    @property
    def table(self) -> NDArray[np.uint8]:
        """The class number, or VOID, of each id."""
        to_nearest = self.chosen is not None and self.chosen.other == "nearest"
        table = nearest(self.ids) if to_nearest else np.full(256, VOID)
        table[self.void] = VOID
        table[list(self.ids)] = np.arange(len(self.ids))
        return table.astype(np.uint8)

    def __call__(self, ids: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """The label map of a mask of ids: class numbers, and VOID."""
        label_map: UInt8[np.ndarray, "H W"] = self.table[ids]
        return label_map

    def require(self, number: int, name: str) -> None:
        """Refuse an id that is neither a class nor void; `name` is the file that contains it."""
        if self.chosen is not None:
            if self.chosen.other == "refuse" and number != self.void and number not in self.chosen.ids:
                cause = f"--task.ids has {' '.join(map(str, self.chosen.ids))}, and {self.void} is void"
                fix = "list it too, or say what others are with --task.other-ids"
                raise DataError(f"{name} has the id {number}", cause=cause, fix=fix)
        elif number != self.void and number - (number > self.void) >= self.num_classes:
            cause = f"there are {self.num_classes} classes, and {self.void} is void"
            fix = "say how many with --task.num-classes or --task.class-names, or which is void with --task.void"
            raise DataError(f"{name} has the id {number}", cause=cause, fix=fix)


def count_classes(present: Iterable[int], void: int) -> int:
    """Number of classes, given the ids that occur: all ids up to the greatest one, except void."""
    last = max((number for number in present if number != void), default=-1)
    return last + 1 - (void < last)


class Mask(NamedTuple):
    """The ids of a mask, and its palette (RGB, 3 bytes an index), where its ids are indices."""

    ids: UInt8[np.ndarray, "H W"]
    palette: bytes | None


@dataclass(frozen=True)
class MaskReading:
    """How mask files are read.

    Attributes:
        lies: how masks lie that belong to turned images.
        listed: which ids are classes is said apart, so that two levels and any palette will do.
    """

    lies: MaskTurn = "auto"
    listed: bool = False


def read_mask(path: Path, size: tuple[int, int], turn: int = 1, reading: MaskReading = MaskReading()) -> Mask:
    """Read a mask file; the ids are upright.

    Args:
        path: the mask file.
        size: height and width of its image, upright.
        turn: the EXIF orientation of its image.

    Raises:
        DataError: the file cannot be read, is no PNG of 8-bit grey or with a known palette, or has another size.
    """
    data = read_file(path)
    if not data.startswith(_SIGNATURE):
        raise DataError(f"{path} cannot be a mask", cause="it is no PNG", fix=_FIX)
    wrong = _not_ids(data, reading.listed)
    if wrong:
        raise DataError(f"{path} cannot be a mask", cause=wrong, fix=_LIST if wrong == _ONE_BIT else _FIX)
    try:
        picture = PngImageFile(BytesIO(data))
        ids = np.array(picture).astype(np.uint8)
        palette = picture.getpalette("RGB") if picture.mode == "P" else None
    except Exception as error:  # decoders raise many types: all mean a bad file
        raise DataError(f"cannot read {path}", cause=f"damaged: {str(error) or type(error).__name__}") from error
    colours = None if palette is None else bytes(palette)
    if colours is not None and not reading.listed and not is_voc(colours, np.unique(ids)):
        raise DataError(f"{path} cannot be a mask", cause="it has a palette", fix=_LIST)
    height, width = ids.shape
    if (height, width) in (size, size[::-1]):
        ids = np.ascontiguousarray(upright(ids, mask_turn(turn, (height, width), size, reading.lies, path)))
    if ids.shape != size:
        cause = f"the mask has {width}x{height} pixels, its image {size[1]}x{size[0]}"
        cause += f", turned by its EXIF tag ({turn})" if turn > 1 else ""
        raise DataError(f"{path} does not lie on its image", cause=cause, fix="make them of one size")
    return Mask(ids, colours)


def _not_ids(data: bytes, listed: bool) -> str:
    """Why the values of a PNG are not ids, by its header; empty where they are, or where it is truncated."""
    about = data[_DEPTH : _COLOURS + 1]
    if len(about) < 2 or about[1] == _PALETTE or (listed and about == b"\1\0"):
        return ""
    depth, colours = about
    return _NOT_GREY.get(colours, "" if depth == 8 else f"it has {depth} bits a pixel")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names from a file with one a line, in the order of ids, without void; none may be there twice."""
    try:
        lines = read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}", cause="it is no UTF-8 text") from error
    names = tuple(line.strip() for line in lines.splitlines() if line.strip())
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice or not names:
        raise DataError(
            f"{path} cannot name classes", cause=f"{twice[0]} stands there twice" if twice else "it is empty"
        )
    return names


class MaskValues(NamedTuple):
    """The ids that occur in masks, each with a mask that contains it, and how many pixels have each."""

    masks: dict[int, Path]
    counts: Int64[np.ndarray, "256"]


class SegmentationDataset(Subset):
    """Images in one folder and, with the same names in another folder, masks with the class of every pixel.

    Both are read from disk at every access; images may differ in size. A sample has a label map and no label.

    Args:
        numbering: maps ids in masks to classes; None: not known yet, and label maps contain the ids.
        reading: how mask files are read.
    """

    def __init__(
        self,
        images: ImageDataset,
        positions: NDArray[np.int64],
        masks: Path,
        numbering: Numbering | None = None,
        classes: tuple[str, ...] = (),
        reading: MaskReading = MaskReading(),
    ) -> None:
        super().__init__(images, positions)
        self.reading = reading
        self.kind, self.masks, self.numbering, self.classes = "segmentation", masks, numbering, classes

    def label(self, index: int) -> int:
        return NONE

    def mask(self, index: int) -> Path:
        """The path of the mask at a position."""
        return self.masks / Path(self.key(index)).with_suffix(".png")

    def decoded(self, index: int, data: bytes, shorter_side: int | None) -> Sample:
        sample = super().decoded(index, data, shorter_side)
        if shorter_side is not None:
            return sample
        ids = self._mask_of(index, data, sample).ids
        return sample._replace(label_map=ids if self.numbering is None else self.numbering(ids))

    def _mask_of(self, index: int, data: bytes, sample: Sample) -> Mask:
        height, width = sample.image.shape[:2]
        return read_mask(self.mask(index), (height, width), turn_of(data), self.reading)

    def select(self, positions: NDArray[np.int64]) -> "SegmentationDataset":
        return SegmentationDataset(
            self.whole, self.positions[positions], self.masks, self.numbering, self.classes, self.reading
        )

    def numbered(self, numbering: Numbering, classes: tuple[str, ...]) -> "SegmentationDataset":
        """The same dataset, with ids mapped to classes by `numbering`."""
        return SegmentationDataset(self.whole, self.positions, self.masks, numbering, classes, self.reading)

    def fingerprint(self) -> str:
        """A digest of the names and file sizes of images and masks."""
        digest = hashlib.sha256(super().fingerprint().encode())
        for index in range(len(self)):
            digest.update(f"{self.mask(index).stat().st_size}\n".encode())
        return digest.hexdigest()

    def present(self, log: Log) -> MaskValues:
        """The ids that occur. Every pair is read, so that errors are found here, also where palettes differ."""

        def look(index: int) -> tuple[NDArray[np.int64], bytes | None]:
            data = self.read(index)
            mask = self._mask_of(index, data, super(SegmentationDataset, self).decoded(index, data, None))
            return np.bincount(mask.ids.reshape(-1), minlength=256), mask.palette

        found, counts = dict[int, Path](), np.zeros(256, np.int64)
        colours = dict[int, tuple[int, ...]]()
        with map_images(look, range(len(self)), log, f"read {self.masks}") as masks:
            for index, result in masks:
                if isinstance(result, DataError):
                    raise result
                here, palette = result
                used = np.flatnonzero(here).astype(np.uint8)
                for number, colour in (colours_of(palette, used) if palette is not None else {}).items():
                    if colours.setdefault(number, colour) != colour:
                        cause = f"id {number} is the colour {colours[number]} in one mask and {colour} in this one"
                        raise DataError(f"{self.mask(index)} cannot be a mask", cause=cause, fix=_FIX)
                found |= {number: self.mask(index) for number in used.tolist() if number not in found}
                counts += here
        return MaskValues(found, counts)


def open_pairs(
    root: Path,
    images: str,
    masks: str,
    channels: int,
    follow: FollowLinks,
    limit: int | None,
    window: Window | None = None,
    reading: MaskReading = MaskReading(),
) -> SegmentationDataset:
    """The images of the folder `images` in `root`, with their masks in `masks`; a `DataError` if one is missing."""
    for name, kind in ((images, "images"), (masks, "masks")):
        if not (root / name).is_dir():
            fix = f"segmentation reads {root / images} and {root / masks}; other names: --task.images, --task.masks"
            raise DataError(f"no folder of {kind} {root / name}", cause="it does not exist", fix=fix)
    source = Folder(root / images, channels, follow=follow)
    source.window = window
    positions = np.array(even_sample(len(source), limit))
    pairs = SegmentationDataset(source, positions, root / masks, reading=reading)
    missing = [index for index in range(len(pairs)) if not pairs.mask(index).is_file()]
    if missing:
        first, count = missing[0], f"{len(missing)} of {len(pairs)} images have no mask"
        raise DataError(count, cause=f"{pairs.name(first)} is the first", fix=f"it needs {pairs.mask(first)}")
    return pairs


class View(NamedTuple):
    """The view of an image and its label map."""

    image: Float[Tensor, "C h w"]
    label_map: UInt8[Tensor, "h w"]


@dataclass(frozen=True, eq=False)
class SegmentationViewSource:
    """Views of images with label maps, which threads read from disk while the network computes."""

    scenes: ImageDataset
    views: TwoViews
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS))
    begun: dict[_Key, "Future[View]"] = field(default_factory=dict)

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        for task in (task for rows in batches for task in _tasks(rows)):
            self._begin(task)

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)

    def __call__(self, rows: SampledBatch) -> Views:
        tasks = _tasks(rows)
        shown = [self._begin(task) for task in tasks]
        for task in tasks:
            self.begun.pop(task, None)
        views = [future.result() for future in shown]
        images, label_maps = (torch.stack(parts) for parts in zip(*views, strict=True))
        return Views(images, None, torch.from_numpy(rows.index), torch.full((len(images),), -1), label_maps)

    def _begin(self, task: _Key) -> "Future[View]":
        if task not in self.begun:
            index, key = task
            self.begun[task] = self.threads.submit(lambda: render_view(self.scenes[index], self.views, np.uint64(key)))
        return self.begun[task]


def _tasks(rows: SampledBatch) -> list[_Key]:
    return [(int(index), int(key)) for index, key in zip(rows.index, rows.view_keys, strict=True)]


def render_view(scene: Sample, views: TwoViews, key: np.uint64) -> View:
    """View of an image for a key: pixels bicubic, label map by nearest neighbour; jitter changes pixels only."""
    assert scene.label_map is not None
    keys: Keys = np.array([key])
    height, width = scene.label_map.shape
    crop = views.crop(keys, height, width, views.size)
    shown = views_of(torch.from_numpy(scene.image).permute(2, 0, 1)[None], views, keys, crop)[0]
    box: Box = tuple(crop.box[0].tolist())
    return View(shown[0], torch.from_numpy(cut(scene.label_map, box, bool(crop.flip[0]), views.size)))


def cut(label_map: UInt8[np.ndarray, "H W"], box: Box, flip: bool, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Nearest-neighbour crop of a label map to `size`, aligned with the crop that `resample` makes of the image."""
    rows = _nearest(box[0], box[2], label_map.shape[0], size[0])
    columns = _nearest(box[1], box[3], label_map.shape[1], size[1])
    return label_map[np.ix_(rows, columns[::-1] if flip else columns)]


def _nearest(start: float, length: float, size_in: int, size_out: int) -> NDArray[np.int64]:
    centres = (start + (np.arange(size_out) + 0.5) * length / size_out) * size_in
    return np.clip(np.floor(centres).astype(np.int64), 0, size_in - 1)
