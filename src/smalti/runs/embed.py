"""`smalti embed`: features of all images of a data set in a file, a row for each image."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.core.compute import choose_compute
from smalti.core.config import require, setting
from smalti.core.log import Log, printable
from smalti.core.ranks import is_rank0
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import absolute_data, open_with_notes
from smalti.data.token_cache import network_digest
from smalti.distributed.collectives import broadcast_precision, from_rank0
from smalti.distributed.process_group import process_group
from smalti.evaluation.feature_blocks import Blocks
from smalti.evaluation.feature_files import NPY, PARQUET, open_features, write_features
from smalti.evaluation.features import Pooling, layer_features
from smalti.models.vit import first_blocks
from smalti.runs.folder import require_model_first
from smalti.runs.image_rows import ImageRows, Table, complete, rendered
from smalti.runs.network import Network, network_of


@dataclass(frozen=True)
class Embed(ImageRows):
    """Which features of which images, and where they are written."""

    noun: ClassVar[str] = "features"
    suffixes: ClassVar[tuple[str, str]] = (NPY, PARQUET)

    layer: int | None = setting(
        None, "block, counted from 1; none: the last; two thirds up after pretraining without a decoder"
    )
    pooling: Pooling = setting("mean", "how its output becomes a vector")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layer is None or self.layer >= 1, f"layer is {self.layer}", "blocks are counted from 1")


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
    log, began = Log(), time.monotonic()
    require_model_first(config.model, config.images)
    config.require_writable()
    with process_group(config.ranks, config.device):
        compute = broadcast_precision(choose_compute(config.device, config.kept_precision()))
        network = network_of(config.model, compute)
        channels = network.backbone.config.in_chans
        source = open_with_notes(config.images, channels, log, config, "all", network.window)
        about = _about(config, network, source)
        complete(config, source, _table(config, network, source, about, log), compute, log)
        result = from_rank0(lambda: _result(config.path, len(source), time.monotonic() - began))
    if is_rank0():
        print(describe(result))
    return result


def _about(config: Embed, network: Network, source: ImageDataset) -> dict[str, Any]:
    """What the features depend on, and what is needed to search in them."""
    window = {} if network.window is None else {"window": list(network.window)}
    return window | {
        "model": absolute_data(config.model),
        "weights": network_digest(network.backbone),
        "images": absolute_data(config.images),
        "fingerprint": source.fingerprint(),
        "layer": network.layer_named(config.layer),
        "pooling": config.pooling,
        "batch_size": config.batch_size,
        "device": network.compute.device.type,
        "precision": network.compute.precision,
    }


def _table(config: Embed, network: Network, source: ImageDataset, about: dict[str, Any], log: Log) -> Table:
    backbone, compute = first_blocks(network.backbone, about["layer"]), network.compute

    def look(pixels: UInt8[Tensor, "B C h w"]) -> Float[Tensor, "B F"]:
        return layer_features(backbone, pixels, compute, about["layer"], config.pooling)

    def write(blocks: Blocks) -> None:
        write_features(config.path, blocks.parts, blocks.read(0).features.shape[1], about)

    see = rendered(config, source, backbone.config.img_size, compute, look, log)
    title = f"layer {about['layer']}, {config.pooling},"
    return Table(title, about, see, write, lambda: open_features(config.path).about)


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
