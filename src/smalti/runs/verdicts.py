"""What a report says first: the few numbers to see, and in a sentence what they mean beside their baselines."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smalti.runs.figures import SCORES
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config, read_kind
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.provenance import TRAINING_RUNS, names_of
from smalti.runs.train_tokenizer_config import TrainTokenizer

Result = Mapping[str, Any]

_MAX_TILES = 6
_WELL_USED = 0.5
"""The share of its codebook below which the verdict on a tokenizer says so."""


class Verdict(NamedTuple):
    """Numbers by name, with their baselines, and what they mean, in a sentence or two."""

    facts: dict[str, str]
    text: str


def verdict_of(run: str) -> Verdict:
    """The verdict on one run, or on both stages of a demo."""
    result = RunFolder(Path(run).expanduser()).read_result()
    if not result:
        return _unfinished(run)
    return _VERDICTS[read_kind(run)](result)


def _unfinished(run: str) -> Verdict:
    """How far a run is, and its last loss."""
    folder, facts = RunFolder(Path(run).expanduser()), dict[str, str]()
    kind, lines = TRAINING_RUNS.get(read_kind(run)), [line for line in folder.read_metrics() if "loss" in line]
    if kind and lines:
        facts = {"step": f"{lines[-1]['step']:,} of {read_config(run, kind).plan.steps:,}"}
        facts["training loss"] = f"{lines[-1]['loss']:.4g}"
    return Verdict(facts, "Not finished yet: its curves so far.")


def together(runs: Sequence[str]) -> Verdict:
    """The first number of each of several runs, and which is best; of runs of different kinds what each means."""
    results, names = {run: RunFolder(Path(run).expanduser()).read_result() for run in runs}, names_of(runs)
    facts, heads = dict[str, str](), dict[str, dict[str, float]]()
    for run, result in results.items():
        if (found := _headline(read_kind(run), result)) is not None:
            name, value, form = found
            heads.setdefault(name, {})[names[run]] = value
            facts[f"{names[run]}: {name}"] = form.format(value)
    said = []
    for name, values in heads.items():
        if len(values) > 1:
            best = max(values, key=lambda one: values[one])
            said.append(f"The best {name} of {len(values)} finished runs: {best}.")
    said = said or [f"{names[run]}: {verdict_of(run).text}" for run in runs]
    return Verdict(dict(list(facts.items())[:_MAX_TILES]), " ".join(said))


def tokenizer_verdict(result: Result) -> Verdict:
    """How well a tokenizer keeps images, and whether it uses its codebook; k-means on the same patches beside it."""
    rows = {
        "images learned from": ("train_images", "{:,}"),
        "PSNR": ("psnr_db", "{:.1f} dB"),
        "codebook in use": ("codebook_usage", "{:.1%}"),
        "perplexity": ("perplexity", "{:.0f}"),
        "perplexity of k-means": ("kmeans_perplexity", "{:.0f}"),
    }
    used = result["codebook_usage"]
    text = f"{used:.1%} of {result['vocab_size']} visual tokens are in use."
    if used < _WELL_USED:
        text += " That is a part: a masked image model on it has less to predict."
    if (beside := result.get("kmeans_perplexity")) is not None:
        less = "as evenly as" if result["perplexity"] >= 0.9 * beside else "less evenly than"
        text += f" They are used {less} those of k-means on the same patches."
    return Verdict(_facts(result, rows), text)


def pretrain_verdict(result: Result) -> Verdict:
    """The loss of masked image modeling, beside two guesses without a network."""
    pixels = "pixel_loss" in result
    loss, flat, copied = _PIXEL_LOSSES if pixels else _TOKEN_LOSSES
    rows = {
        "images learned from": ("train_images", "{:,}"),
        "loss": (loss, "{:.3f}" if pixels else "{:.2f} nats"),
        "patches of one colour" if pixels else "unigram entropy": (flat, "{:.3f}" if pixels else "{:.2f} nats"),
        "copying the nearest": (copied, "{:.3f}" if pixels else "{:.2f} nats"),
        "guessed right": ("accuracy", "{:.1%}"),
    }
    facts = _facts(result, rows)
    if result.get(loss) is None or result.get(flat) is None:
        return Verdict(facts, "Its loss has no baseline to be compared with.")
    beside = [result[key] for key in (flat, copied) if result.get(key) is not None]
    gain = min(beside) - result[loss]
    unit = "of the error" if pixels else "nats a masked token"
    share = f"{gain / min(beside):.1%}" if pixels else f"{abs(gain):.2f}"
    if gain > 0:
        text = (
            f"The network predicts what is masked: {share} {unit} below the best guess that knows no image structure."
        )
    else:
        text = (
            "The network predicts masked patches no better than a guess that copies or counts: it has learned little."
        )
    return Verdict(facts, text)


def finetune_verdict(result: Result) -> Verdict:
    """The test score of a fine-tuned network, beside the most frequent class."""
    name, value, form = _finetune_headline(result)
    facts = {
        "images learned from": f"{result['train_images']:,}",
        f"test {name}": form.format(value),
        f"validation {name}": form.format(result[f"validation_{_chosen_by(result)}"]),
        "classes": f"{result['classes']:,}",
    }
    text = f"{form.format(value)} {name} on {result['test_images']} test images, which were looked at once."
    if (table := result.get("test_confusion")) and (total := sum(map(sum, table))):
        often = max(map(sum, table)) / total
        facts["most frequent class"] = form.format(often)
        text += f" Saying the most frequent class of every image would give {form.format(often)}."
    return Verdict(facts, text)


def demo_verdict(result: Result) -> Verdict:
    """Both stages and, where images have labels, what pretraining was worth beside no training."""
    mim, tokenizer = result["mim"], result["tokenizer"]
    facts = {
        "images learned from": f"{mim['train_images']:,}",
        "codebook in use": f"{tokenizer['codebook_usage']:.1%}",
        "PSNR": f"{tokenizer['psnr_db']:.1f} dB",
        "below unigram entropy": f"{mim['unigram_entropy_nats'] - mim['loss_nats']:.2f} nats",
    }
    text = "Images taken apart into visual tokens, masked, and dreamt back."
    if "probe" in result:
        gain, pixels = result["probe"]["gain_points"], result["probe"]["pixels"]["linear"]
        facts["linear probe"] = f"{gain:+.1f} points"
        more = f"{abs(gain):.1f} points {'more' if gain >= 0 else 'less'}"
        text += (
            f" A linear probe of the frozen network scores {more} than"
            f" one of the same network untrained; one of raw pixels scores {pixels:.1%}."
        )
    return Verdict(facts, text)


_VERDICTS: dict[str, Callable[[Result], Verdict]] = {
    TrainTokenizer.__name__: tokenizer_verdict,
    Pretrain.__name__: pretrain_verdict,
    Finetune.__name__: finetune_verdict,
    "Demo": demo_verdict,
}
_TOKEN_LOSSES = ("loss_nats", "unigram_entropy_nats", "neighbour_nats")
_PIXEL_LOSSES = ("pixel_loss", "flat_pixel_loss", "neighbour_pixel_loss")


def _facts(result: Result, rows: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {name: form.format(result[key]) for name, (key, form) in rows.items() if result.get(key) is not None}


def _chosen_by(result: Result) -> str:
    """The score that chose the weights."""
    return next(key for key in SCORES if result.get(f"test_{key}") is not None)


def _finetune_headline(result: Result) -> tuple[str, float, str]:
    """Name, value and form of that score on test images."""
    figure, value = SCORES[_chosen_by(result)], result[f"test_{_chosen_by(result)}"]
    return figure.text, value, figure.form


_HEADLINES = {
    TrainTokenizer.__name__: ("psnr_db", "PSNR", "{:.1f} dB"),
    Pretrain.__name__: ("bits_saved_per_token", "bits saved a masked token", "{:.2f}"),
}
"""Key, name and form of the first number of a run; of fine-tuning it is the score that chose the weights."""


def _headline(kind: str, result: Result) -> tuple[str, float, str] | None:
    """Name, value and form of the first number of a run; None where it has none yet."""
    if kind == Finetune.__name__ and result:
        return _finetune_headline(result)
    key, name, form = _HEADLINES.get(kind, ("", "", ""))
    return None if result.get(key) is None else (name, result[key], form)
