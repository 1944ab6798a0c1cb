"""What there is to show of a run: curves, pictures and tables, as sections of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.core.files import write_bytes
from smalti.core.log import Log
from smalti.data.load import Images
from smalti.data.sources.resident import embedded_photographs
from smalti.evaluation.bound import table_of
from smalti.evaluation.codebook import survey
from smalti.evaluation.completion import Completion, complete
from smalti.report.atlas import Card, atlas
from smalti.report.charts import by_layer, curve
from smalti.report.page import Section, page, table
from smalti.report.pictures import mask_overlay, tile_row
from smalti.runs.folder import RunFolder, read_config
from smalti.runs.pretrain import Pretrain, held_out_batch, load_model
from smalti.runs.train_tokenizer import TrainTokenizer, load_tokenizer

_PICTURES = 12


def tokenizer_sections(run: str, compute: Compute, images: Images | None = None) -> list[Section]:
    """Curves, reconstructions and codebook of a tokenizer run."""
    config, folder = read_config(run, TrainTokenizer), RunFolder(Path(run).expanduser())
    held_out = (config.data.load(Log()) if images is None else images).held_out
    tokenizer = load_tokenizer(run, compute)
    shown = held_out.images[:_PICTURES]
    with torch.no_grad(), compute.autocast():
        decoded = tokenizer.decode(tokenizer.encode(shown.to(compute.device)))
    series = {name: _series(folder, name) for name in _TOKENIZER_CURVES}
    curves = "".join(
        curve({name: points}, xlabel="step", ylabel=_TOKENIZER_CURVES[name])
        for name, points in series.items()
        if points[0]
    )
    sections = [
        Section(
            "Stage one: the image tokenizer",
            curves + _numbers(folder.read_result(), _TOKENIZER_NUMBERS),
            "A tokenizer learns to write an image as a few visual tokens and to read it back: how well it keeps the"
            " pixels, how much each position says about its image, and how many codes a batch shows of those it could.",
        ),
        Section(
            "Images written in visual tokens",
            tile_row(
                {"original": to_pixels(shown), "decoded": to_pixels(decoded)}, scale=scale_of(shown.shape[-1]), across=3
            ),
            "Held-out images, never trained on. A reconstruction knows one token number for each tile and no more.",
        ),
        _codebook(tokenizer, held_out.images, compute),
    ]
    return sections if config.data.channels == 1 else [*sections, _photographs(config, tokenizer, compute)]


def _codebook(tokenizer: Tokenizer, held_out: Tensor, compute: Compute) -> Section:
    """The most frequent codes with their typical patches, and those that do not occur."""
    found = survey(tokenizer, held_out, compute)
    cards = [Card(c.number, c.share, to_pixels(c.prototype[None])[0], to_pixels(c.examples)) for c in found.codes]
    return Section(
        "The codebook",
        atlas(cards, found.counts.numpy()),
        "Of each visual token first what it paints among its like, then held-out patches that are typical of it."
        " Counted on patches that are not constant.",
    )


def _photographs(config: TrainTokenizer, tokenizer: Tokenizer, compute: Compute) -> Section:
    """Pictures of another kind: the public-domain photographs inside the package."""
    images = replace(config.data, path=str(embedded_photographs()), limit=None).load(Log())
    both = torch.cat([part.images for part in images])
    painted = tokenizer.decode(tokenizer.encode(both.to(compute.device)))
    return Section(
        "Pictures of another kind",
        tile_row(
            {"original": to_pixels(both), "decoded": to_pixels(painted)}, scale=scale_of(both.shape[-1]), across=3
        ),
        "Public-domain photographs that come with smalti. What the tokenizer has not seen enough of, it cannot write.",
    )


def pretrain_sections(run: str, compute: Compute, images: Images | None = None) -> list[Section]:
    """The loss against its baseline, and what the network fills in."""
    config, folder = read_config(run, Pretrain), RunFolder(Path(run).expanduser())
    held_out = (config.data.load(Log()) if images is None else images).held_out
    tokenizer, model = load_tokenizer(config.tokenizer, compute), load_model(run, compute)
    batch = held_out_batch(config, held_out, tokenizer, compute, _PICTURES)
    seen = complete(model, tokenizer, batch, compute)
    result = folder.read_result()
    level = ("unigram entropy", result["unigram_entropy_nats"]) if "unigram_entropy_nats" in result else None
    chart = curve({"training loss": _series(folder, "loss")}, xlabel="step", ylabel="nats a hidden patch", level=level)
    chart += curve({"accuracy": _series(folder, "accuracy")}, xlabel="step", ylabel="share of hidden tokens guessed")
    return [
        Section(
            "Stage two: masked image modeling",
            chart + _numbers(result, _PRETRAIN_NUMBERS),
            "About 40 % of the patches are hidden and the network guesses their visual tokens. The dashed line is what"
            " a guess costs that knows only how frequent each token is: what lies below it is learned from the image.",
        ),
        Section(
            "Hidden, and dreamt back",
            tile_row(completed(seen, config.backbone.patch_size), scale=scale_of(batch.image.shape[-1]), across=2),
            "Held-out images. The tokenizer's view is the best that any prediction can give; in the last column the"
            " hidden tokens are replaced by the most likely predicted ones and decoded together.",
        ),
        *_bound(result),
    ]


def _bound(result: Mapping[str, Any]) -> list[Section]:
    """Both stages as a model of images, where that was measured."""
    if "bound" not in result:
        return []
    header, *rows = table_of(result["bound"])
    return [
        Section(
            "What the two stages are worth as a model of images",
            table(header, rows, highlight=[(len(rows) - 1, len(header) - 1)]),
            "What it costs to write a held-out image down, given what its mask leaves: D for the pixels when the tokens"
            " are known, and R for naming the tokens to somebody with this prior, in nats a patch. D is that of a"
            " density and may be negative. The sum is also in bits a sub-pixel of an 8-bit image, by density times the"
            " width of a grey level, which credits flat areas too much, and by the probability of grey levels, which"
            " does not. The masked image model names hidden tokens only; visible ones cost what their frequency says.",
        )
    ]


def completed(seen: Completion, patch_size: int) -> dict[str, UInt8[np.ndarray, "n _H _W _C"]]:
    """Pictures of a completion by the heading above them."""
    original = to_pixels(seen.original)
    return {
        "original": original,
        "masked": mask_overlay(original, seen.mask.numpy(), patch_size),
        "tokenizer": to_pixels(seen.tokenizer),
        "predicted": to_pixels(seen.predicted),
    }


def comparison_section(kind: str, runs: Sequence[str]) -> Section:
    """Several runs of one kind: their losses in one chart, their results in one table."""
    folders = {Path(run).name: RunFolder(Path(run).expanduser()) for run in runs}
    names = _TOKENIZER_NUMBERS if kind == TrainTokenizer.__name__ else _PRETRAIN_NUMBERS
    results = {name: folder.read_result() for name, folder in folders.items()}
    rows = [
        [name, *("-" if result.get(key) is None else form.format(result[key]) for key, (_, form) in names.items())]
        for name, result in results.items()
    ]
    chart = curve({name: _series(folder, "loss") for name, folder in folders.items()}, xlabel="step", ylabel="loss")
    header = ["run", *(text for text, _ in names.values())]
    return Section(f"{kind}: side by side", chart + table(header, rows), "Measured on each run's own held-out images.")


def probe_section(rows: Mapping[str, Mapping[str, Any]]) -> Section:
    """Accuracies of frozen features, network by network, and by layer."""
    header = ["frozen features", "k-NN", "linear probe", "linear, 1 % of labels", "best layer"]
    body = [
        [name, *(percent(row[key]) for key in ("knn", "linear", "linear_few")), f"{row['layer']} ({row['pooling']})"]
        for name, row in rows.items()
    ]
    return Section(
        "What the network has learned",
        table(header, body, highlight=[(0, 1), (0, 2), (0, 3)]) + _layer_charts(rows),
        "Accuracy on labelled test images that neither stage nor any choice has seen. Layer, pooling and regularisation"
        " are chosen on a part of the training images, in the same way for every row.",
    )


def percent(share: float) -> str:
    """0.8354 as `83.5 %`."""
    return f"{100 * share:.1f} %"


def write_page(
    target: Path, title: str, subtitle: str, sections: Sequence[Section], facts: Mapping[str, str] | None = None
) -> None:
    """Put the sections on one page and write it."""
    write_bytes(target, page(title, subtitle, sections, facts or {}).encode())


_TOKENIZER_CURVES = {
    "nll": "nats a sub-pixel",
    "kl": "KL, nats a position",
    "codes": "codes seen in a batch, of those possible",
}

_TOKENIZER_NUMBERS = {
    "psnr_db": ("PSNR of hard-token reconstructions", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "hard_soft_gap_db": ("PSNR of the soft posterior, minus that", "{:.2f} dB"),
    "codebook_usage": ("share of the codebook in use", "{:.1%}"),
    "perplexity": ("perplexity of the codebook", "{:.0f}"),
    "kmeans_perplexity": ("the same of k-means on patches", "{:.0f}"),
    "top_share": ("share of the most frequent code", "{:.1%}"),
    "unigram_entropy_nats": ("unigram entropy of the tokens", "{:.3f} nats"),
    "elbo_nats": ("evidence lower bound, an image", "{:.0f} nats"),
    "bits_per_dim": ("bits per dimension of 8-bit pixels", "{:.2f}"),
}

_PRETRAIN_NUMBERS = {
    "loss_nats": ("loss on held-out images", "{:.3f} nats"),
    "unigram_entropy_nats": ("unigram entropy of hidden tokens", "{:.3f} nats"),
    "accuracy": ("hidden tokens guessed right", "{:.1%}"),
}


def _numbers(result: Mapping[str, Any], names: Mapping[str, tuple[str, str]]) -> str:
    rows = [[text, form.format(result[key])] for key, (text, form) in names.items() if result.get(key) is not None]
    return table(["on held-out images", "value"], rows) if rows else ""


def _layer_charts(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Validation accuracy by layer, a chart for each pooling."""
    poolings: dict[str, dict[str, dict[str, float]]] = {}
    for name, row in rows.items():
        for key, accuracy in row["validation"].items():
            layer, pooling = key.split(" ")
            if layer != "0":
                poolings.setdefault(pooling, {}).setdefault(layer, {})[name] = accuracy
    return "".join(
        by_layer(list(layers.items()), xlabel="block", ylabel=f"{pooling}: validation accuracy", width=280, height=230)
        for pooling, layers in poolings.items()
    )


def _series(folder: RunFolder, name: str) -> tuple[list[float], list[float]]:
    lines = [line for line in folder.read_metrics() if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def scale_of(width: int) -> int:
    """Screen pixels for a pixel: small images are shown about 112 pixels wide."""
    return max(1, round(112 / width))


def to_pixels(images: Tensor) -> UInt8[np.ndarray, "n H W C"]:
    """uint8 pictures, channels last, of images that are uint8 or in [0, 1]."""
    pixels = images if images.dtype == torch.uint8 else (images.float() * 255).round().to(torch.uint8)
    array: UInt8[np.ndarray, "n H W C"] = pixels.cpu().permute(0, 2, 3, 1).numpy()
    return array
