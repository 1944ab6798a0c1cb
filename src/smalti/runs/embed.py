"""`smalti embed`: features of all images of a data set in a file, a row for each image.

Blocks of images are computed one after another, by one process or several, and kept in a folder beside the file until
all are there; a command that was killed goes on with the blocks that are missing.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smalti.core.compute import Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.errors import DataError, UsageError
from smalti.core.files import make_folder, remove_folder, remove_leftovers, require_place, write_json
from smalti.core.folder_lock import only_writer
from smalti.core.log import Log, printable
from smalti.core.ranks import is_rank0, rank, world_size
from smalti.data.bad_files import LeftOutFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.folder import FollowLinks
from smalti.data.datasets.labels import LABEL_SEPARATOR
from smalti.data.datasets.open import lasting, open_source
from smalti.data.datasets.tables import require_extra
from smalti.data.load import Data
from smalti.data.loader import open_renderer
from smalti.data.reading import CentreCrops
from smalti.data.token_cache import digest
from smalti.data.workers.jobs import Rendered, Renderer, Task
from smalti.distributed.collectives import from_rank0, require_same, same_format
from smalti.distributed.process_group import Ranks, barrier, process_group
from smalti.evaluation.feature_blocks import BLOCK, Block, Blocks
from smalti.evaluation.feature_files import NPY, PARQUET, open_features, write_features
from smalti.evaluation.features import Pooling, layer_features
from smalti.models.vit import first_blocks
from smalti.runs.network import Network, network_of

_ABOUT = "about.json"
_AHEAD = 2
"""Batches that are decoded while another one is computed."""
_PLACES = ("model", "images")
"""What may have moved when the command goes on: digests say whether it is the same."""


@dataclass(frozen=True)
class Embed:
    """Which features of which images, and where they are written."""

    model: str
    """The run folder of a pretrained or fine-tuned network."""
    images: str
    """DATA: a folder, a list, tar shards, Parquet files, a data set of Hugging Face, or 'embedded'."""
    out: str = setting("", "the file to write, in .npy or .parquet")
    layer: int | None = setting(None, "block, counted from 1; none: two thirds up after pretraining, else the last")
    pooling: Pooling = setting("mean", "how its output becomes a vector")
    batch_size: int = setting(64, "images of a forward pass")
    num_workers: int | None = setting(None, "processes that decode; 0: none; none: by the machine")
    worker_timeout: float = setting(180.0, "seconds after which reading one image counts as hung")
    max_bad_fraction: float = setting(0.01, "share of unreadable images, which are left out, above which it stops")
    follow_links: FollowLinks = setting("inside", "links of a folder: those that stay inside it, or all")
    root: str = setting("", "the folder that the paths of a list are relative to; empty: that of the list")
    label_separator: str = setting("auto", LABEL_SEPARATOR)
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(bool(self.out), "no file to write", "use --out features.npy or --out features.parquet")
        require(
            Path(self.out).suffix in (NPY, PARQUET),
            f"cannot write features to '{self.out}'",
            "use a name in .npy or .parquet",
        )
        require(self.layer is None or self.layer >= 1, f"layer is {self.layer}", "blocks are counted from 1")
        require(1 <= self.batch_size <= BLOCK, f"batch_size is {self.batch_size}", f"use 1 to {BLOCK}")
        require(
            self.num_workers is None or self.num_workers >= 0, f"num_workers is {self.num_workers}", "use 0 or more"
        )
        require(self.worker_timeout > 0, f"worker_timeout is {self.worker_timeout}", "use more than 0 seconds")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction is {self.max_bad_fraction}", "choose one in [0, 1]")


def main(config: Embed) -> dict[str, Any]:
    """Compute the missing rows and write the file. It may be interrupted at any time and continues when called again.

    Returns:
        `out`; `images` of the data set, `rows` in the file, `unreadable`; `features` of a row; `layer`, `pooling`;
        `seconds`.

    Raises:
        DataError: too many images cannot be read.
        UsageError: the file, or the blocks beside it, are of other features.
        OutputError: it cannot be written.
    """
    out, log, began = Path(config.out).expanduser(), Log(), time.monotonic()
    require_place(out)
    if out.suffix == PARQUET:
        require_extra("pyarrow", str(out))
    folder = out.with_name(f"{out.name}.parts")
    with process_group(config.ranks, config.device):
        compute = same_format(choose_compute(config.device, _precision(config, folder)))
        network = network_of(config.model, compute)
        source = open_source(
            config.images,
            network.backbone.config.in_chans,
            log,
            config.follow_links,
            root=config.root,
            label_separator=config.label_separator,
        )
        about = _about(config, network, source)
        require_same("network or data set", about)
        if not from_rank0(lambda: _is_done(out, folder, about)):
            log.say(f"{out}: layer {about['layer']}, {config.pooling}, of {len(source)} images; {compute.describe()}")
            with ExitStack() as held:
                from_rank0(lambda: _begin(held, folder, about))
                blocks = Blocks(folder, source)
                _compute(config, network, about, blocks, log)
                barrier()
                from_rank0(lambda: _join(out, blocks, about, config.max_bad_fraction, log))
        result = from_rank0(lambda: _result(out, len(source), time.monotonic() - began))
    if is_rank0():
        print(describe(result))
    return result


def _precision(config: Embed, folder: Path) -> Precision:
    """The number format; where it is chosen by speed, that of the blocks that are there."""
    if config.precision != "auto":
        return config.precision
    there: Precision = _read_about(folder).get("precision", config.precision)
    return there


def _about(config: Embed, network: Network, source: ImageDataset) -> dict[str, Any]:
    """What the features depend on, and what is needed to search in them."""
    return {
        "model": lasting(config.model),
        "weights": digest(network.backbone),
        "images": lasting(config.images),
        "fingerprint": source.fingerprint(),
        "layer": network.layer_named(config.layer),
        "pooling": config.pooling,
        "batch_size": config.batch_size,
        "device": network.compute.device.type,
        "precision": network.compute.precision,
    }


def _read_about(folder: Path) -> dict[str, Any]:
    """What the blocks in a folder are; empty where there are none."""
    try:
        return dict(json.loads((folder / _ABOUT).read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / _ABOUT} is damaged", cause=str(error), fix=f"remove {folder}") from error


def _is_done(out: Path, folder: Path, about: dict[str, Any]) -> bool:
    """Whether the file is there.

    Raises:
        UsageError: it is one of other features.
    """
    if not out.exists():
        return False
    _require_alike(out, open_features(out).about, about)
    remove_folder(folder)
    return True


def _begin(held: ExitStack, folder: Path, about: dict[str, Any]) -> None:
    """Create or enter the folder of blocks, and hold its lock."""
    make_folder(folder)
    held.enter_context(only_writer(folder))
    remove_leftovers(folder)
    if there := _read_about(folder):
        _require_alike(folder, there, about)
    write_json(folder / _ABOUT, about)


def _require_alike(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [name for name in here if name not in _PLACES and there.get(name) != here[name]]
    if differing:
        cause = ", ".join(f"{name} was {there.get(name)}, and is {here[name]}" for name in differing)
        raise UsageError(f"{path} has other features", cause=cause, fix="choose another --out, or remove it")


def _compute(config: Embed, network: Network, about: dict[str, Any], blocks: Blocks, log: Log) -> None:
    """Compute the missing ones among the blocks of this rank, which are consecutive, and as many as of any other."""
    own = range(rank() * blocks.count // world_size(), (rank() + 1) * blocks.count // world_size())
    missing = [number for number in own if not blocks.path(number).exists()]
    batches = [_batches(blocks.positions(number), config.batch_size) for number in missing]
    backbone, source = first_blocks(network.backbone, about["layer"]), blocks.source
    on_gpu, reasons = network.compute.device.type == "cuda", dict[int, str]()
    left_out = _left_out(source, None, config.max_bad_fraction)
    done, total = 0, sum(map(len, map(blocks.positions, missing)))
    with closing(_renderer(config, network, source, log)) as renderer, log.progress("embed", total) as bar:
        rendered = _render(renderer, [batch for block in batches for batch in block])
        for number, block in zip(missing, batches, strict=True):
            positions, features, bad = [], [], []
            for wanted, found in zip(block, rendered, strict=False):
                kept = found.shown == wanted  # in the place of an unreadable image another one is rendered
                reasons |= {item.position: item.reason for item in found.bad}
                bad += [(source.name(place), reasons.get(place, "unknown")) for place in wanted[~kept].tolist()]
                pixels = torch.from_numpy(found.arrays[0][kept])
                pixels = pixels.pin_memory() if on_gpu else pixels  # so that copying does not wait for the last batch
                features.append(layer_features(backbone, pixels, network.compute, about["layer"], config.pooling))
                positions.append(wanted[kept])
                done += len(wanted)
                bar.update(done)
            for item in bad:
                left_out.add(*item)
            blocks.store(number, Block(np.concatenate(positions), torch.cat(features).cpu().numpy(), bad))


def _batches(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _renderer(config: Embed, network: Network, source: ImageDataset, log: Log) -> Renderer:
    here = source.in_order or source.pixels is not None  # several processes would read out of order, or copy pixels
    data = Data(num_workers=0 if here else config.num_workers, worker_timeout=config.worker_timeout)
    job = CentreCrops(source, network.backbone.config.img_size)
    return open_renderer(job, data, config.batch_size, network.compute.device, log)


def _render(renderer: Renderer, batches: list[NDArray[np.int64]]) -> Iterator[Rendered]:
    """The pixels of each batch, valid until the next one is taken."""
    tasks = [Task(positions, np.zeros(len(positions), np.uint64)) for positions in batches]
    for place, task in enumerate(tasks):
        renderer.prefetch(tasks[place : place + 1 + _AHEAD])
        yield renderer(task)


def _left_out(source: ImageDataset, path: Path | None, most: float) -> LeftOutFiles:
    return LeftOutFiles(len(source), path, most, "remove them, or raise --max-bad-fraction")


def _join(out: Path, blocks: Blocks, about: dict[str, Any], most_bad: float, log: Log) -> None:
    """Write the file, list what it lacks beside it, and remove the blocks."""
    left_out = _left_out(blocks.source, out.with_name(f"{out.stem}.bad_files.jsonl"), most_bad)
    for number in range(blocks.count):
        left_out.found += blocks.read(number).bad
    left_out.finish(log)
    write_features(out, blocks.parts, blocks.read(0).features.shape[1], about)
    remove_folder(blocks.folder)


def _result(out: Path, images: int, seconds: float) -> dict[str, Any]:
    written = open_features(out)
    return {
        "out": str(out),
        "images": images,
        "rows": written.count,
        "unreadable": images - written.count,
        "features": written.width,
        "layer": written.about["layer"],
        "pooling": written.about["pooling"],
        "seconds": seconds,
    }


def describe(result: dict[str, Any]) -> str:
    """One line."""
    rows = f"{result['rows']} rows of {result['features']} features, layer {result['layer']} ({result['pooling']})"
    return f"{printable(result['out'])}: {rows}, {result['unreadable']} unreadable left out, {result['seconds']:.1f} s"
