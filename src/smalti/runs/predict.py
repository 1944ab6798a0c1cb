"""`smalti predict`: what a fine-tuned network says of all images of a data set, a row for each image.

Of classes and labels the most likely ones with their probabilities; of pixels a mask for each image, beside the file.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.compute import Compute, choose_compute
from smalti.core.config import require, setting
from smalti.core.contracts import Sample
from smalti.core.errors import DataError, UsageError
from smalti.core.files import write_bytes
from smalti.core.log import Log, printable
from smalti.core.ranks import is_rank0
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.datasets.open import absolute_data, open_with_notes
from smalti.data.formats import ARRAYS, EXTENSIONS
from smalti.data.reading import try_read
from smalti.data.token_cache import digest_of
from smalti.distributed.collectives import broadcast_precision, from_rank0
from smalti.distributed.process_group import process_group
from smalti.evaluation.feature_blocks import Block, Blocks
from smalti.evaluation.feature_files import PARQUET, text_of
from smalti.evaluation.prediction_files import (
    CSV,
    Columns,
    class_columns,
    every_class,
    label_columns,
    read_about,
    row_columns,
    write_predictions,
)
from smalti.evaluation.supervised import CHUNK, class_scores, predict
from smalti.models.classifier import ImageClassifier
from smalti.models.segmenter import Segmenter
from smalti.report.pictures import mask_png
from smalti.runs.finetune import Finetune
from smalti.runs.folder import read_config, read_kind, require_model_first, run_folder, run_of
from smalti.runs.image_rows import ComputeRows, ImageRows, Table, complete, rendered
from smalti.runs.models import load_finetuned
from smalti.runs.segmentation_task import Segmentation

_THREADS = 2
_MAX_SHOWN = 20


@dataclass(frozen=True)
class Predict(ImageRows):
    """Which network says something of which images, and where it is written."""

    noun: ClassVar[str] = "predictions"
    suffixes: ClassVar[tuple[str, str]] = (CSV, PARQUET)

    top: int = setting(5, "classes that a row names, the most likely ones")
    threshold: float = setting(0.5, "probability from which an image has a label, where it may have several")
    every_class: bool = setting(False, "a column for each class too, p_NAME, with its probability")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top >= 1, f"top is {self.top}", "use at least 1")
        require(0 <= self.threshold <= 1, f"threshold is {self.threshold}", "choose one in [0, 1]")

    @property
    def masks(self) -> Path:
        """The folder of masks, where pixels have classes."""
        return self.path.with_name(f"{self.path.stem}.masks")


@dataclass(frozen=True)
class FinetunedModel:
    """A fine-tuned network, and the run that it is of."""

    run: Finetune
    classes: tuple[str, ...]
    model: ImageClassifier | Segmenter
    compute: Compute


def main(config: Predict) -> dict[str, Any]:
    """Compute the missing rows and write the file. It may be interrupted at any time and continues when called again.

    Returns:
        `out`; `images` of the data set, `rows` in the file, `unreadable`; `classes` of the network; `predicted`: by
        class the number of images, or of pixels `pixel_share`, and `masks`, the folder; `seconds`.

    Raises:
        DataError: too many images cannot be read.
        UsageError: the network is not fine-tuned; the file, or what is beside it, is of something else.
        OutputError: it cannot be written.
    """
    log, began = Log(), time.monotonic()
    require_model_first(config.model, config.images)
    config.require_writable()
    with process_group(config.ranks, config.device):
        compute = broadcast_precision(choose_compute(config.device, config.kept_precision()))
        finetuned = _load_model(config.model, compute)
        task = finetuned.run.task
        where = task.images_inside(config.images) if isinstance(task, Segmentation) else config.images
        channels, window = finetuned.model.backbone.config.in_chans, finetuned.run.data.known_window
        source = open_with_notes(where, channels, log, config, "all", window)
        table = _table(config, finetuned, source, log)
        complete(config, source, table, compute, log)
        result = from_rank0(lambda: _result(config, len(source), time.monotonic() - began))
    if is_rank0():
        print(describe(result))
    return result


def describe(result: dict[str, Any]) -> str:
    """The file in one line; then how often each class was predicted."""
    masks = f", masks in {printable(result['masks'])}" if "masks" in result else ""
    first = (
        f"{printable(result['out'])}: {result['rows']} rows{masks}, {result['unreadable']} unreadable left out,"
        f" {result['seconds']:.1f} s"
    )
    counts = result.get("predicted") or result["pixel_share"]
    order = sorted(counts, key=lambda name: -counts[name])
    lines = [f"  {printable(name):<28} {_cell(counts[name]):>8}" for name in order[:_MAX_SHOWN]]
    more = [f"  and {len(order) - _MAX_SHOWN} more classes"] if len(order) > _MAX_SHOWN else []
    return "\n".join([first, *lines, *more])


def _cell(value: int | float) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def _load_model(model: str, compute: Compute) -> FinetunedModel:
    """The network of a fine-tuning run."""
    kind = read_kind(model)
    if kind != Finetune.__name__:
        fix = f"fine-tune it: smalti finetune RECIPE --data DATA --init {model} --out RUN"
        raise UsageError(f"{model} is {run_of(kind)}", cause="it has no classes to predict", fix=fix)
    return FinetunedModel(
        read_config(model, Finetune), run_folder(model).read_classes(), load_finetuned(model, compute), compute
    )


def _table(config: Predict, finetuned: FinetunedModel, source: ImageDataset, log: Log) -> Table:
    """What the rows depend on, and how they are made and written."""
    run, task = finetuned.run, finetuned.run.task
    about: dict[str, Any] = {
        "model": absolute_data(config.model),
        "weights": digest_of(finetuned.model, [run.backbone, task]),
        "images": absolute_data(config.images),
        "fingerprint": source.fingerprint(),
        "classes": list(map(text_of, finetuned.classes)),
        "batch_size": config.batch_size,
        "device": finetuned.compute.device.type,
        "precision": finetuned.compute.precision,
    }
    if isinstance(task, Segmentation):
        from_rank0(lambda: _require_free(config))
        places = _mask_places(config.masks, source)
        see = _masks(finetuned, task, source, places)
        title = "classes of pixels"
    else:
        about |= {"top": config.top, "threshold": config.threshold, "every_class": config.every_class}
        side, size = run.data.side, run.backbone.img_size

        def look(pixels: UInt8[Tensor, "B C side side"]) -> Float[Tensor, "B classes"]:
            images = InMemoryDataset(pixels, torch.zeros(len(pixels), dtype=torch.int64))
            return class_scores(finetuned.model, images, size, finetuned.compute)

        see = rendered(config, source, (side, side), finetuned.compute, look, log)
        places, title = [], "labels" if task.multi_label else "classes"

    def write(blocks: Blocks) -> None:
        known = about | _summary(config, finetuned, blocks)
        write_predictions(config.path, lambda: _columns(config, finetuned, blocks, places), known)

    return Table(title, about, see, write, lambda: read_about(config.path))


def _columns(config: Predict, finetuned: FinetunedModel, blocks: Blocks, places: list[Path]) -> Iterator[Columns]:
    """All rows, a block at a time."""
    for part in blocks.parts():
        if isinstance(finetuned.run.task, Segmentation):
            rows = list(part.rows)
            columns = row_columns(rows)
            columns["mask"] = [text_of(str(places[row.position].relative_to(config.path.parent))) for row in rows]
            yield columns | every_class(part.features, finetuned.classes, "share_")
        elif finetuned.run.task.multi_label:
            yield label_columns(part, finetuned.classes, config.threshold, config.every_class)
        else:
            yield class_columns(part, finetuned.classes, config.top, config.every_class)


def _summary(config: Predict, finetuned: FinetunedModel, blocks: Blocks) -> dict[str, Any]:
    """The number of rows, and how often each class was predicted."""
    task, names = finetuned.run.task, list(map(text_of, finetuned.classes))
    total, rows = np.zeros(len(names)), 0
    for part in (blocks.read(number).features.numpy() for number in range(blocks.count)):
        rows += len(part)
        if isinstance(task, Segmentation):
            total += part.sum(0, dtype=np.float64)
        elif task.multi_label:
            total += (1 / (1 + np.exp(-part.astype(np.float64))) >= config.threshold).sum(0)
        else:
            total += np.bincount(part.argmax(1), minlength=len(names))
    if isinstance(task, Segmentation):
        shares = dict(zip(names, (total / max(rows, 1)).tolist(), strict=True))
        return {"rows": rows, "pixel_share": shares, "masks": str(config.masks)}
    return {"rows": rows, "predicted": dict(zip(names, total.astype(int).tolist(), strict=True))}


def _result(config: Predict, images: int, seconds: float) -> dict[str, Any]:
    about = read_about(config.path)
    told: dict[str, Any] = {name: about[name] for name in ("predicted", "pixel_share", "masks") if name in about}
    counts = {"images": images, "rows": about["rows"], "unreadable": images - about["rows"]}
    return {"out": str(config.path), **counts, "classes": len(about["classes"]), **told, "seconds": seconds}


def _require_free(config: Predict) -> None:
    """Check that no masks are there but those of this file."""
    if config.path.exists() or config.parts.exists() or not config.masks.exists():
        return
    if not config.masks.is_dir() or any(config.masks.iterdir()):
        fix = "choose another --out, or remove it"
        raise UsageError(f"{config.masks} is not empty", cause="masks are written there", fix=fix)


def _mask_places(folder: Path, source: ImageDataset) -> list[Path]:
    """The file of the mask of every image: its key inside `folder`, with .png in the place of its suffix.

    It is behind the whole key where that is no image file (data.parquet:0) or others have that name (a.jpg, a.tif).
    """
    whole, short = list[Path](), list[Path]()
    for position in range(len(source)):
        parts = [part for part in PurePosixPath(source.key(position)).parts if part not in ("/", "..", ".")]
        key = folder.joinpath(*parts or [str(position)])
        whole.append(key.with_name(f"{key.name}.png"))
        short.append(key.with_suffix(".png") if key.suffix.lower() in EXTENSIONS | ARRAYS else whole[-1])
    often = Counter(short)
    places = [own if often[own] == 1 else longer for own, longer in zip(short, whole, strict=True)]
    first = dict[Path, int]()
    for position, place in enumerate(places):
        if (other := first.setdefault(place, position)) != position:
            both = f"{source.name(other)} and {source.name(position)}"
            raise DataError(f"{both} would have one mask", cause=f"both are {place}", fix="rename one of them")
    return places


def _masks(finetuned: FinetunedModel, task: Segmentation, source: ImageDataset, places: list[Path]) -> ComputeRows:
    """Writes the masks of whole images; the rows are the shares of pixels of each class."""
    count, size = len(finetuned.classes), finetuned.run.backbone.img_size
    ids = np.array(task.numbering(count).ids, np.uint8)

    def seen(wanted: NDArray[np.int64], found: list[Sample | DataError]) -> Block:
        bad = [
            (source.name(position), sample.cause or sample.what)
            for position, sample in zip(wanted.tolist(), found, strict=True)
            if isinstance(sample, DataError)
        ]
        kept = [number for number, sample in enumerate(found) if isinstance(sample, Sample)]
        images = [sample.image for sample in found if isinstance(sample, Sample)]
        shares = torch.zeros(len(kept), count)
        for start in range(0, len(kept), CHUNK):
            some = predict(finetuned.model, images[start : start + CHUNK], size, task.window, finetuned.compute)
            for row, label_map in enumerate(some, start):
                shares[row] = torch.bincount(label_map.flatten(), minlength=count) / label_map.numel()
                write_bytes(places[wanted[kept[row]]], mask_png(label_map.numpy(), ids))
        return Block(wanted[kept], shares, bad)

    def see(batches: list[NDArray[np.int64]]) -> Generator[Block, None, None]:
        with ThreadPoolExecutor(_THREADS) as threads:
            for batch in batches:
                parts = []
                for start in range(0, len(batch), CHUNK):
                    some = batch[start : start + CHUNK]
                    found = list(threads.map(lambda place: try_read(source.__getitem__, place), some.tolist()))
                    parts.append(seen(some, found))
                yield Block.joined(parts)

    return see
