"""What reports call the figures of a result, how they write them, and which way each is better."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from smalti.report.page import table
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer


class Figure(NamedTuple):
    """A figure of a result.

    Attributes:
        greater: whether it is better the greater; None of baselines, and of what is no merit.
    """

    text: str
    form: str
    greater: bool | None = None

    def cell(self, value: float | None) -> str:
        """The value as it is written in a table, or a dash."""
        return "-" if value is None else self.form.format(value)


SCORES = {
    "accuracy": Figure("accuracy", "{:.1%}", True),
    "mean_average_precision": Figure("mean average precision", "{:.1%}", True),
    "mean_iou": Figure("mean IoU", "{:.1%}", True),
    "top5": Figure("among the best five guesses", "{:.1%}", True),
    "nats": Figure("cross-entropy, an image", "{:.3f} nats", False),
    "pixel_accuracy": Figure("pixel accuracy", "{:.1%}", True),
}
"""Of fine-tuned networks; the first that a result has is the score that chose its weights."""

FIGURES: dict[str, dict[str, Figure]] = {
    TrainTokenizer.__name__: {
        "psnr_db": Figure("PSNR of hard-token reconstructions", "{:.2f} dB", True),
        "ssim": Figure("SSIM", "{:.3f}", True),
        "hard_soft_gap_db": Figure("PSNR of the soft posterior, minus that", "{:.2f} dB", False),
        "codebook_usage": Figure("share of the codebook in use", "{:.1%}", True),
        "perplexity": Figure("perplexity of the codebook", "{:.0f}", True),
        "kmeans_perplexity": Figure("the same of k-means on patches", "{:.0f}"),
        "top_share": Figure("share of the most frequent code", "{:.1%}", False),
        "unigram_entropy_nats": Figure("unigram entropy of the tokens", "{:.3f} nats"),
        "position_bits": Figure("bits that a code tells of its position", "{:.3f}"),
        "position_bits_by_chance": Figure("the same of shuffled tokens", "{:.3f}"),
        "colour_bits": Figure("bits that a code tells of the colour of its patch", "{:.3f}"),
        "colour_bits_by_chance": Figure("the same of shuffled tokens", "{:.3f}"),
        "class_bits": Figure("bits that a code tells of the class of its image", "{:.3f}"),
        "class_bits_by_chance": Figure("the same of shuffled tokens", "{:.3f}"),
        "elbo_nats": Figure("evidence lower bound, an image", "{:.0f} nats", True),
        "bits_per_dim": Figure("bits per dimension of 8-bit pixels", "{:.2f}", False),
    },
    Pretrain.__name__: {
        "loss_nats": Figure("loss per masked token", "{:.3f} nats", False),
        "unigram_entropy_nats": Figure("unigram entropy of masked tokens", "{:.3f} nats"),
        "neighbour_nats": Figure("the same of a guess that copies the nearest visible token", "{:.3f} nats"),
        "bits_saved_per_token": Figure("bits saved a token, of the unigram entropy", "{:.3f}", True),
        "bits_saved_over_neighbour": Figure("bits saved a token, of the copying guess", "{:.3f}", True),
        "accuracy": Figure("masked tokens guessed right", "{:.1%}", True),
        "top5_accuracy": Figure("among the best five guesses", "{:.1%}", True),
        "neighbour_accuracy": Figure("right by copying", "{:.1%}"),
        "soft_loss_nats": Figure("loss against the tokenizer's posterior", "{:.3f} nats", False),
        "kl_nats": Figure("KL from the tokenizer's posterior", "{:.3f} nats", False),
        "pixel_loss": Figure("loss per masked patch of pixels", "{:.4f}", False),
        "flat_pixel_loss": Figure("the same of patches of one colour", "{:.4f}"),
        "neighbour_pixel_loss": Figure("the same of copies of the nearest visible patch", "{:.4f}"),
    },
    Finetune.__name__: SCORES,
}
"""By the kind of a run, in the order in which they are shown."""


def values_table(header: str, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    """A row for each figure that a result has; empty if it has none."""
    rows = [[one.text, one.cell(result[key])] for key, one in figures.items() if result.get(key) is not None]
    return table([header, "value"], rows) if rows else ""
