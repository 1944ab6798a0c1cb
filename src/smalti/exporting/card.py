"""The model card of an export, README.md: what the model is, what it was measured at, and how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smalti import __version__
from smalti.exporting.certificate import describe
from smalti.exporting.loaded_model import LoadedModel

IMPORTED = "imported from"
"""The entry of a recipe that names the file of another program."""
_RESULTS = {
    "loss_nats": "loss, nats a masked token",
    "unigram_entropy_nats": "unigram entropy, nats",
    "accuracy": "masked tokens guessed",
    "test_accuracy": "accuracy on test images",
    "test_mean_average_precision": "mean average precision on test images",
    "test_mean_iou": "mean IoU on test images",
    "psnr_db": "PSNR of hard tokens, dB",
    "codebook_usage": "share of the codebook in use",
    "perplexity": "perplexity of the codes",
}
"""Figures of result.json that a card shows."""


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Attributes:
        name: of its folder.
        parameters: their number.
        recipe: settings of the training, in words.
        counts: of images, by what they were for.
        tokenizer: digest of the tokenizer whose tokens were predicted; empty where there is none.
        result: content of result.json.
        evaluation: accuracies of frozen features, `pretrained` and, where measured, `random`; None: not measured.
    """

    name: str
    parameters: int
    recipe: Mapping[str, str]
    counts: Mapping[str, int]
    tokenizer: str
    result: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None

    def lines(self) -> list[str]:
        """All facts, one a line."""
        shown = [f"- {name}: {value}" for name, value in self.recipe.items()]
        shown += [f"- {name}: {count:,}" for name, count in self.counts.items()]
        shown += [f"- tokenizer (SHA-256): `{self.tokenizer}`"] if self.tokenizer else []
        return [f"- parameters: {self.parameters:,}", *shown]

    def measured(self) -> list[str]:
        """The measured results, as lines of Markdown; empty where there are none."""
        known = {text: self.result[key] for key, text in _RESULTS.items() if isinstance(self.result.get(key), float)}
        lines = [f"- {text}: {value:.4g}" for text, value in known.items()]
        if self.evaluation is None:
            return lines
        table = ["", "| frozen features | k-NN | linear probe |", "|---|---|---|"]
        for name, row in self.evaluation.items():
            table.append(f"| {_ROWS[name]} | {row['knn']:.1%} | {row['linear']:.1%} |")
        best = self.evaluation["pretrained"]
        return [
            *lines,
            *table,
            "",
            f"The best layer is block {best['layer']} ({best['pooling']}), on validation images.",
        ]


_ROWS = {"pretrained": "this model", "random": "the same network without training"}
_INPUT = {
    "bundle": "pixels, uint8 or in [0, 1]; the network normalises them itself",
    "unilm": "pixels in [0, 1], minus `mean`, divided by `std`, as the released code prepares them",
    "timm": "pixels in [0, 1], minus `mean`, divided by `std`, as timm's transforms prepare them",
    "huggingface": "`pixel_values` of the image processor in this folder",
    "onnx": "pixels in [0, 1], float32; the graph normalises them itself",
    "torch-export": "pixels in [0, 1], float32; the program normalises them itself",
}
_LANGUAGES = {"bundle": "bash"}
_LICENCE = (
    "The weights belong to whoever trained them, and so does the choice of a licence: write it here. smalti itself is"
    " Apache-2.0."
)


def card(loaded: LoadedModel, facts: Facts, target: str, snippet: str, certificate: Mapping[str, Any]) -> bytes:
    """README.md."""
    shown = loaded.preprocessing
    measured = facts.measured() or ["Nothing was measured."]
    made = "imported" if IMPORTED in facts.recipe else "trained and exported"
    parts = [
        f"# {facts.name}",
        f"A {loaded.kind}, {made} by [smalti](https://pypi.org/project/smalti/) {__version__}.",
        *("## Model", "\n".join(facts.lines())),
        *("## Measured", "\n".join(measured)),
        "## Input",
        f"The centre square of an image, resized ({shown.interpolation}) to {shown.size[0]} x {shown.size[1]} pixels,"
        f" {shown.channels} channels; mean {_plain(shown.mean)}, std {_plain(shown.std)} of pixels in [0, 1]."
        f" It takes {_INPUT[target]}.",
        "## How to load it",
        f"```{_LANGUAGES.get(target, 'python')}\n{snippet.strip()}\n```",
        *("## Parity", f"{describe(certificate).capitalize()}. Versions and digests are in certificate.json."),
        *("## Licence", _LICENCE),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _plain(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
