"""Report sections of a run: curves, pictures and tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.core.errors import CheckpointError, DataError
from smalti.core.files import write_bytes
from smalti.core.folder_lock import is_written
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset, embedded_photographs
from smalti.data.load import Data, InMemoryData
from smalti.data.reading import even_sample, spread_over_classes
from smalti.evaluation.bound import table_of
from smalti.evaluation.codebook_survey import survey
from smalti.evaluation.reference_curves import FLAT_PATCH, vocab_size_of
from smalti.functional.patches import varied_patches
from smalti.report.charts import by_layer, curve
from smalti.report.page import Section, best_cells, page, table
from smalti.report.pictures import Card, atlas, scale_of, tile_row, to_pixels
from smalti.runs.codes import codebook_examples
from smalti.runs.feature_sections import feature_sections
from smalti.runs.figures import FIGURES, Figure, values_table
from smalti.runs.folder import RunFolder, read_config
from smalti.runs.inpainting_pictures import completions
from smalti.runs.models import load_inpainter
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.pretraining_checks import ONLINE, ReferenceComparison, comparison_of
from smalti.runs.provenance import TRAINING_RUNS, differences, names_of
from smalti.runs.tokenizers import load_tokenizer
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training.checkpoint import has_checkpoint
from smalti.training.targets import Pixels

_PICTURES = 12
_CODES, _LOOKED_AT = 6, 500
"""Codes that are shown where they occur, and images in which they are looked for."""


def tokenizer_sections(run: str, compute: Compute, images: InMemoryData | None = None) -> list[Section]:
    """Curves, reconstructions and codebook of a tokenizer run."""
    config, folder = read_config(run, TrainTokenizer), RunFolder(Path(run).expanduser())
    series = {name: series_of(folder, name) for name in _TOKENIZER_CURVES}
    curves = "".join(
        curve({name: points}, xlabel="step", ylabel=_TOKENIZER_CURVES[name])
        for name, points in series.items()
        if points[0]
    )
    begun = Section(
        "Stage one: the image tokenizer",
        curves + values_table("on held-out images", folder.read_result(), FIGURES[TrainTokenizer.__name__]),
        "A tokenizer learns to write an image as a few visual tokens and to read it back: how well it keeps the"
        " pixels, how much each position says about its image, and how many codes a batch shows of those it could.",
    )
    if not has_checkpoint(folder.path):
        return [begun]
    return [begun, *pictures_of(run, lambda: _tokenizer_pictures(run, config, compute, images))]


def pictures_of(run: str, sections: Callable[[], list[Section]]) -> list[Section]:
    """Sections with pictures; none, which is said, of a run whose images, tokenizer or weights cannot be read any more.

    Raises:
        CheckpointError: they cannot while the run goes on: a checkpoint may have been replaced as it was read.
    """
    try:
        return sections()
    except (DataError, CheckpointError) as error:
        if isinstance(error, CheckpointError) and is_written(Path(run).expanduser()):
            raise
        Log().say(f"no pictures of {run}: {error}")
        return []


def _tokenizer_pictures(
    run: str, config: TrainTokenizer, compute: Compute, images: InMemoryData | None
) -> list[Section]:
    """Reconstructions of held-out images, and the codebook."""
    held_out = held_out_images(config.data) if images is None else images.held_out
    tokenizer = load_tokenizer(run, compute)
    shown = held_out.images[spread_over_classes(held_out.labels, _PICTURES)]
    with torch.no_grad(), compute.autocast():
        decoded = tokenizer.decode(tokenizer.encode(shown.to(compute.device)))
    channels = config.data.show_channels
    sections = [
        Section(
            "Images written in visual tokens",
            tile_row(
                {"original": to_pixels(shown, channels), "decoded": to_pixels(decoded, channels)},
                scale=scale_of(shown.shape[-1]),
                across=3,
            ),
            "Held-out images, never trained on. A reconstruction knows one token number for each tile and no more.",
        ),
        _codebook(tokenizer, held_out.images, compute, channels),
        *_amid_images(tokenizer, held_out.images, compute, channels),
    ]
    return sections if config.data.channels != 3 else [*sections, _photographs(config, tokenizer, compute)]


def _codebook(tokenizer: Tokenizer, held_out: Tensor, compute: Compute, shown: tuple[int, ...] | None) -> Section:
    """The most frequent codes with patches that have them, and the codes that do not occur."""
    found = survey(tokenizer, held_out, compute)
    cards = [
        Card(c.number, c.share, to_pixels(c.prototype[None], shown)[0], to_pixels(c.examples, shown))
        for c in found.codes
    ]
    return Section(
        "The codebook",
        atlas(cards, found.counts.numpy()),
        "Of each visual token first what it paints among its like, then held-out patches with it, evenly drawn."
        " Counted on patches that are not constant.",
    )


def _amid_images(
    tokenizer: Tokenizer, held_out: Tensor, compute: Compute, shown: tuple[int, ...] | None
) -> list[Section]:
    """Some codes and the places where they occur; no section where every patch is of a single colour."""
    sample = held_out[even_sample(len(held_out), _LOOKED_AT)]
    if not varied_patches(sample, tokenizer.stride).any():
        return []
    columns, captions, note = codebook_examples(tokenizer, sample, _CODES, compute, shown)
    return [Section("Where visual tokens occur", tile_row(columns, scale=1, captions=captions), note)]


def _photographs(config: TrainTokenizer, tokenizer: Tokenizer, compute: Compute) -> Section:
    """Results on images of another kind: the public-domain photographs in the package."""
    images = replace(config.data, path=str(embedded_photographs()), limit=None).load(Log())
    both = torch.cat([images.train.images, images.held_out.images])
    painted = tokenizer.decode(tokenizer.encode(both.to(compute.device)))
    return Section(
        "Views of another kind",
        tile_row(
            {"original": to_pixels(both), "decoded": to_pixels(painted)}, scale=scale_of(both.shape[-1]), across=3
        ),
        "Public-domain photographs that come with smalti. What the tokenizer has not seen enough of, it cannot write.",
    )


def pretrain_sections(run: str, compute: Compute, images: InMemoryData | None = None) -> list[Section]:
    """The loss with its baselines, and the network's predictions for masked patches."""
    config, folder = read_config(run, Pretrain), RunFolder(Path(run).expanduser())
    result, pixels = folder.read_result(), isinstance(config.target, Pixels)
    name, key = ("patches of one colour", "flat_pixel_loss") if pixels else ("unigram entropy", "unigram_entropy_nats")
    # With soft targets the training loss is not comparable with these.
    level = (name, result[key]) if key in result and "soft_loss_nats" not in result else None
    ylabel = "error per masked patch" if pixels else "nats per masked patch"
    loss = series_of(folder, "last" if config.patch_aggregation.depth else "loss")
    beside = _beside(config, result)
    reference, said = ({}, "") if beside is None else _reference(beside, loss[0])
    chart = curve({"training loss": loss} | reference, xlabel="step", ylabel=ylabel, level=level)
    if not pixels:
        guessed = {
            name: series_of(folder, key) for name, key in (("the best guess", "accuracy"), ("best five", "top5"))
        }
        shown = {name: points for name, points in guessed.items() if points[0]}
        chart += curve(shown, xlabel="step", ylabel="share of masked tokens guessed")
    if (online := series_of(folder, ONLINE))[0]:
        chart += curve({"k-NN, best block": online}, xlabel="step", ylabel="share of labelled images known")
    begun = Section(
        "Stage two: masked image modeling",
        chart + values_table("on held-out images", result, FIGURES[Pretrain.__name__]),
        "A part of the patches is masked, and the network guesses what is there. The dashed line is what a guess"
        " costs that never looks at the image: what lies below it is learned from the image." + said,
    )
    if not has_checkpoint(folder.path):
        return [begun]
    return [begun, *_bound(result), *pictures_of(run, lambda: _pretrain_pictures(run, config, compute, images))]


def _pretrain_pictures(run: str, config: Pretrain, compute: Compute, images: InMemoryData | None) -> list[Section]:
    """Held-out images with masks, filled in by the network, and what its features find alike."""
    held_out = held_out_images(config.data) if images is None else images.held_out
    chosen = held_out.select(spread_over_classes(held_out.labels, _PICTURES))
    inpainter = load_inpainter(run, compute)
    columns, note = completions(inpainter, inpainter.batch(chosen.images[:_PICTURES]), config.data.show_channels)
    return [
        Section(
            "Masked, and dreamt back",
            tile_row(columns, scale=scale_of(columns["original"].shape[2]), across=2),
            f"Held-out images. {note}",
        ),
        *feature_sections(inpainter.model.backbone, held_out, compute, config.data.show_channels),
    ]


@lru_cache(maxsize=2)
def held_out_images(data: Data) -> InMemoryDataset:
    """The held-out images of a run; a page that is written again and again reads them once."""
    return data.load(Log()).held_out


def _beside(config: Pretrain, result: Mapping[str, Any]) -> ReferenceComparison | None:
    """A finished run with its nearest reference; None if there is none or the training loss is not comparable."""
    pixels = isinstance(config.target, Pixels)
    baseline = FLAT_PATCH if pixels else result.get("unigram_entropy_nats")
    vocab_size = None if pixels else vocab_size_of(result)
    if baseline is None or pixels == (vocab_size is not None) or "soft_loss_nats" in result:
        return None
    return comparison_of(config, vocab_size, baseline)


def _reference(
    beside: ReferenceComparison, steps: Sequence[float]
) -> tuple[dict[str, tuple[list[float], list[float]]], str]:
    """The curve of the reference at these steps, and its description; both empty outside its range of images."""
    known = {step: loss for step in steps if (loss := beside.loss_at(int(step))) is not None}
    if not known:
        return {}, ""
    line = {f"reference {beside.reference.name}": (list(known), list(known.values()))}
    return line, f" The other curve is that of {beside.describe()}."


def _bound(result: Mapping[str, Any]) -> list[Section]:
    """Both stages evaluated as a generative model of images, if that was measured."""
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
            " does not. The masked image model names masked tokens only; visible ones cost what their frequency says.",
        )
    ]


def comparison_section(kind: str, runs: Sequence[str]) -> Section:
    """Compare runs of one kind of pretraining stage, by its metrics and figures."""
    note = "Measured on each run's own held-out images; the best of each is bold, and so are settings that differ from"
    curves = {"loss": "training loss"} | _CURVES[kind]
    return side_by_side(kind, runs, FIGURES[kind], curves, f"{note} those of most runs, or of the first of two.")


def side_by_side(
    kind: str,
    runs: Sequence[str],
    figures: Mapping[str, Figure],
    curves: Mapping[str, str],
    note: str,
    facts: Callable[[Any, RunFolder], Mapping[str, str]] | None = None,
) -> Section:
    """Compare runs of one kind: charts of their metrics, tables of their results and of settings that differ.

    Args:
        figures: by their keys in results; those that no run has are left out.
        curves: metrics, and what their axes count.
        facts: further columns of a run, by heading.
    """
    names = names_of(runs)
    folders = {name: RunFolder(Path(run).expanduser()) for run, name in names.items()}
    configs = {name: read_config(run, TRAINING_RUNS[kind]) for run, name in names.items()}
    charts = ""
    for metric, ylabel in curves.items():
        lines = {name: line for name, folder in folders.items() if (line := series_of(folder, metric))[0]}
        charts += curve(lines, xlabel="step", ylabel=ylabel) if lines else ""
    results = {name: folder.read_result() for name, folder in folders.items()}
    columns = {key: [result.get(key) for result in results.values()] for key in figures}
    shown = {key: one for key, one in figures.items() if any(value is not None for value in columns[key])}
    more = [{} if facts is None else facts(configs[name], folder) for name, folder in folders.items()]
    headings = list(dict.fromkeys(heading for one in more for heading in one))
    rows = [
        [name, *(one.cell(results[name].get(key)) for key, one in shown.items()), *(own.get(h, "-") for h in headings)]
        for name, own in zip(folders, more, strict=True)
    ]
    bold = best_cells((columns[key], one.greater) for key, one in shown.items())
    html = charts + table(["run", *(one.text for one in shown.values()), *headings], rows, highlight=bold)
    return Section(f"{kind}: side by side", html + differences(configs), note)


def probe_section(rows: Mapping[str, Mapping[str, Any]]) -> Section:
    """Probe accuracies of frozen features, by network and by layer."""
    header = ["frozen features", "k-NN", "linear probe", "linear, 1 % of labels", "best layer"]
    body = [
        [name, *(percent(row[key]) for key in ("knn", "linear", "linear_few")), f"{row['layer']} ({row['pooling']})"]
        for name, row in rows.items()
    ]
    best = best_cells(([row[key] for row in rows.values()], True) for key in ("knn", "linear", "linear_few"))
    return Section(
        "What the network has learned",
        table(header, body, highlight=best) + layer_charts(rows),
        "Accuracy on labelled test images that neither stage nor any choice has seen. Layer, pooling and regularisation"
        " are chosen on a part of the training images, in the same way for every row.",
    )


def percent(share: float) -> str:
    """0.8354 as `83.5 %`."""
    return f"{100 * share:.1f} %"


def write_page(
    target: Path,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    facts: Mapping[str, str] | None = None,
    reload: int = 0,
) -> None:
    """Put the sections on one page and write it; `reload` as of `page`."""
    write_bytes(target, page(title, subtitle, sections, facts or {}, reload).encode())


_TOKENIZER_CURVES = {
    "nll": "nats a sub-pixel",
    "kl": "KL, nats a position",
    "codes": "codes seen in a batch, of those possible",
}

_CURVES: dict[str, dict[str, str]] = {
    TrainTokenizer.__name__: _TOKENIZER_CURVES,
    Pretrain.__name__: {"accuracy": "share of masked tokens guessed", ONLINE: "share of labelled images known"},
}
"""By the kind of a run: metrics that are shown besides the loss, and what their axes count."""


def layer_charts(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Validation accuracy by layer, a chart for each pooling."""
    poolings: dict[str, dict[str, dict[str, float]]] = {}
    for name, row in rows.items():
        for key, accuracy in row["validation"].items():
            layer, pooling = key.split(" ")
            if layer != "0":
                poolings.setdefault(pooling, {}).setdefault(layer, {})[name] = accuracy
    return "".join(
        by_layer(list(layers.items()), ylabel=f"{pooling}: validation accuracy") for pooling, layers in poolings.items()
    )


def series_of(folder: RunFolder, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric in metrics.jsonl; lines without it, from another stage, are skipped."""
    lines = [line for line in folder.read_metrics() if isinstance(line.get(name), int | float)]
    return [line["step"] for line in lines], [line[name] for line in lines]
