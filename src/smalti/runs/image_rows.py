"""A row of numbers for every image of a data set, in a file: what `embed` and `predict` have in common.

Blocks of images are computed one after another, by one process or several, and kept in a folder beside the file until
all are there; a command that was killed goes on with the blocks that are missing.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from smalti.core.compute import Compute, Device, Precision
from smalti.core.config import require, setting
from smalti.core.errors import DataError, UsageError
from smalti.core.files import make_folder, remove_folder, remove_leftovers, require_place, write_json
from smalti.core.folder_lock import writer_lock
from smalti.core.log import Log
from smalti.core.ranks import rank, world_size
from smalti.core.stored import read_object
from smalti.data.bad_files import LeftOutFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import ReadOptions
from smalti.data.datasets.tables import require_extra
from smalti.data.load import Data
from smalti.data.loader import open_renderer
from smalti.data.reading import CentreCrops
from smalti.data.workers.jobs import Task
from smalti.distributed.collectives import from_rank0, require_same
from smalti.distributed.process_group import Ranks, barrier
from smalti.evaluation.feature_blocks import BLOCK, Block, Blocks
from smalti.evaluation.feature_files import PARQUET

_ABOUT = "about.json"
_AHEAD = 2
"""Batches that are decoded while another one is computed."""
_PLACES = ("model", "images")
"""What may have moved when the command goes on: digests say whether it is the same."""


@dataclass(frozen=True)
class ImageRows(ReadOptions):
    """A model, images, and the file in which every image gets a row."""

    noun: ClassVar[str]
    """What the rows are, as a word for messages."""
    suffixes: ClassVar[tuple[str, str]]
    """Of the files that can be written."""

    model: str
    """A run folder, or a bundle."""
    images: str
    """DATA: a folder, a list, tar shards, Parquet files, a data set of Hugging Face, or 'embedded'."""
    out: str = setting("", "the file to write; its suffix says which kind")
    batch_size: int = setting(64, "images of a forward pass")
    num_workers: int | None = setting(None, "processes that decode; 0: none; none: by the machine")
    worker_timeout: float = setting(180.0, "seconds after which reading one image counts as hung")
    max_bad_fraction: float = setting(0.01, "share of unreadable images, which are left out, above which it stops")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        examples = " or ".join(f"--out {self.noun}{suffix}" for suffix in self.suffixes)
        require(bool(self.out), "no file to write", f"use {examples}")
        require(
            Path(self.out).suffix in self.suffixes,
            f"cannot write {self.noun} to '{self.out}'",
            f"use a name in {' or '.join(self.suffixes)}",
        )
        require(1 <= self.batch_size <= BLOCK, f"batch_size is {self.batch_size}", f"use 1 to {BLOCK}")
        require(
            self.num_workers is None or self.num_workers >= 0, f"num_workers is {self.num_workers}", "use 0 or more"
        )
        require(self.worker_timeout > 0, f"worker_timeout is {self.worker_timeout}", "use more than 0 seconds")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction is {self.max_bad_fraction}", "choose one in [0, 1]")

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.out).expanduser()

    @property
    def parts(self) -> Path:
        """The folder of blocks, which is there while some are missing."""
        return self.path.with_name(f"{self.path.name}.parts")

    def require_writable(self) -> None:
        """Check that the file can be written, before anything is computed.

        Raises:
            OutputError: the place cannot be written.
            DataError: a package is missing.
        """
        require_place(self.path)
        if self.path.suffix == PARQUET:
            require_extra("pyarrow", str(self.path))

    def kept_precision(self) -> Precision:
        """The number format; where it is chosen by speed, that of the blocks that are there."""
        if self.precision != "auto":
            return self.precision
        there: Precision = _read_about(self.parts).get("precision", self.precision)
        return there


ComputeRows: TypeAlias = Callable[[list[NDArray[np.int64]]], Generator[Block, None, None]]
"""Computes the rows of batches, given the positions of their images; one result for each batch, in order."""


class Table(NamedTuple):
    """A file of rows: what is in it, how it is computed, written and read.

    Attributes:
        title: what the rows are, in a few words.
        about: all that the rows depend on, as JSON values.
        see: computes the rows of batches.
        write: writes the file from all blocks.
        read_about: `about` of the file that is there.
    """

    title: str
    about: dict[str, Any]
    see: ComputeRows
    write: Callable[[Blocks], None]
    read_about: Callable[[], dict[str, Any]]


def complete(config: ImageRows, source: ImageDataset, table: Table, compute: Compute, log: Log) -> None:
    """Compute the rows that are missing, and write the file. It may be interrupted at any time and called again.

    Raises:
        DataError: too many images cannot be read.
        UsageError: the file, or the blocks beside it, are of something else.
        OutputError: it cannot be written.
    """
    require_same("network or data set", table.about)
    if from_rank0(lambda: _is_done(config, table)):
        return
    log.say(f"{config.path}: {table.title} of {len(source)} images; {compute.describe()}")
    with ExitStack() as held:
        from_rank0(lambda: _begin(held, config, table.about))
        blocks = Blocks(config.parts, source)
        _compute(config, blocks, table.see, log)
        barrier()
        from_rank0(lambda: _join(config, blocks, table, log))


def rendered(
    config: ImageRows,
    source: ImageDataset,
    size: tuple[int, int],
    compute: Compute,
    look: Callable[[UInt8[Tensor, "B C h w"]], Float[Tensor, "B F"]],
    log: Log,
) -> ComputeRows:
    """Rows of the centres of images in one size (height, width), which workers decode while others are computed."""

    def see(batches: list[NDArray[np.int64]]) -> Generator[Block, None, None]:
        if not batches:
            return
        here = source.in_order or source.pixels is not None  # processes would read out of order, or copy pixels
        data = Data(num_workers=0 if here else config.num_workers, worker_timeout=config.worker_timeout)
        job, reasons = CentreCrops(source, size), dict[int, str]()
        tasks = [Task(positions, np.zeros(len(positions), np.uint64)) for positions in batches]
        with closing(open_renderer(job, data, config.batch_size, compute.device, log)) as renderer:
            for place, (wanted, _) in enumerate(tasks):
                renderer.prefetch(tasks[place : place + 1 + _AHEAD])
                found = renderer(tasks[place])
                kept = found.shown == wanted  # in the place of an unreadable image another one is rendered
                reasons |= {item.position: item.reason for item in found.bad}
                bad = [(source.name(spot), reasons.get(spot, "unknown")) for spot in wanted[~kept].tolist()]
                yield Block(wanted[kept], look(torch.from_numpy(found.arrays[0][kept])), bad)

    return see


def _read_about(folder: Path) -> dict[str, Any]:
    """What the blocks in a folder are; empty where there are none."""
    try:
        return read_object(folder / _ABOUT)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / _ABOUT} is damaged", cause=str(error), fix=f"remove {folder}") from error


def _is_done(config: ImageRows, table: Table) -> bool:
    """Whether the file is there.

    Raises:
        UsageError: it is one of something else.
    """
    if not config.path.exists():
        return False
    _require_alike(config.path, config.noun, table.read_about(), table.about)
    remove_folder(config.parts)
    return True


def _begin(held: ExitStack, config: ImageRows, about: dict[str, Any]) -> None:
    """Create or enter the folder of blocks, and hold its lock."""
    make_folder(config.parts)
    held.enter_context(writer_lock(config.parts))
    remove_leftovers(config.parts)
    if there := _read_about(config.parts):
        _require_alike(config.parts, config.noun, there, about)
    write_json(config.parts / _ABOUT, about)


def _require_alike(path: Path, noun: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [name for name in here if name not in _PLACES and there.get(name) != here[name]]
    if differing:
        cause = ", ".join(f"{name} was {there.get(name)}, and is {here[name]}" for name in differing)
        raise UsageError(f"{path} has other {noun}", cause=cause, fix="choose another --out, or remove it")


def _compute(config: ImageRows, blocks: Blocks, see: ComputeRows, log: Log) -> None:
    """Compute the missing ones among the blocks of this rank, which are consecutive, and as many as of any other."""
    own = range(rank() * blocks.count // world_size(), (rank() + 1) * blocks.count // world_size())
    missing = [number for number in own if not blocks.path(number).exists()]
    batches = [_batches(blocks.positions(number), config.batch_size) for number in missing]
    left_out, done = _left_out(blocks.source, None, config.max_bad_fraction), 0
    with (
        log.progress(config.noun, sum(map(len, map(blocks.positions, missing)))) as bar,
        closing(see([batch for block in batches for batch in block])) as found,
    ):
        for number, block in zip(missing, batches, strict=True):
            parts = []
            for wanted, part in zip(block, found, strict=False):
                parts.append(part)
                for item in part.bad:
                    left_out.add(*item)
                done += len(wanted)
                bar.update(done, f"{len(left_out.found)} unreadable" if left_out.found else "")
            blocks.store(number, Block.joined(parts))


def _batches(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _left_out(source: ImageDataset, path: Path | None, most: float) -> LeftOutFiles:
    return LeftOutFiles(len(source), path, most, "--max-bad-fraction")


def _join(config: ImageRows, blocks: Blocks, table: Table, log: Log) -> None:
    """Write the file, list what it lacks beside it, and remove the blocks."""
    listed = config.path.with_name(f"{config.path.stem}.bad_files.jsonl")
    left_out = _left_out(blocks.source, listed, config.max_bad_fraction)
    for number in range(blocks.count):
        left_out.found += blocks.read(number).bad
    left_out.finish(log)
    table.write(blocks)
    remove_folder(blocks.folder)
