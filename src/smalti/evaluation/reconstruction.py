"""Evaluation of a tokenizer on a fixed sample of held-out images: reconstruction and use of the codebook."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.evaluation.code_information import CodeInformation, code_information, figures_of
from smalti.evaluation.likelihood import Bound, Posterior, Quantiser, measure_bound, soft_psnr
from smalti.evaluation.token_sample import fit_kmeans_baseline, sample_index
from smalti.functional.metrics import CodebookUse, codebook_use, psnr, ssim
from smalti.functional.patches import varied_patches
from smalti.models.vit import as_unit_range


@dataclass(frozen=True)
class TokenizerResult:
    """Quality of a tokenizer on the sample of held-out images.

    Attributes:
        psnr_db: PSNR of hard-token reconstructions in dB, mean over images.
        ssim: structural similarity, mean over images, at most 1.
        codebook: use of the codebook over patches with more than one colour.
        unigram_entropy: over all positions, in nats; the loss that masked image modeling has to improve on.
        constant_share: share of the positions whose patch has a single colour, in [0, 1].
        soft_psnr_db: PSNR where the posterior is decoded instead of its most likely token; None without a posterior.
        bound: for tokenizers that have a density, else None.
        kmeans_baseline: use of a k-means codebook on patches with as many codes; None without training images.
        information: what codes tell of position, colour and class; None where every patch has a single colour.
        kmeans_information: the same of k-means.
    """

    psnr_db: float
    ssim: float
    codebook: CodebookUse
    unigram_entropy: float
    constant_share: float
    soft_psnr_db: float | None = None
    bound: Bound | None = None
    kmeans_baseline: CodebookUse | None = None
    information: CodeInformation | None = None
    kmeans_information: CodeInformation | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The numbers under the names that results and `--json` use; None where they do not apply to the tokenizer."""
        bound, soft = self.bound, self.soft_psnr_db
        return {
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            **_figures(self.codebook),
            "window_tokens": self.codebook.tokens,
            "unigram_entropy_nats": self.unigram_entropy,
            "constant_share": self.constant_share,
            "hard_soft_gap_db": None if soft is None else soft - self.psnr_db,
            **{name: None if bound is None else getattr(bound, name) for name in _OF_BOUND},
            **_figures(self.kmeans_baseline, "kmeans_"),
            **figures_of(self.information),
            **figures_of(self.kmeans_information, "kmeans_"),
        }

    def describe(self) -> str:
        """The figures as plain text."""
        return describe_tokenizer(self.as_dict())


_OF_BOUND = ("elbo_nats", "distortion_nats", "bits_per_dim", "bits_per_dim_unigram", "grey_level_bits_per_dim")


def _figures(use: CodebookUse | None, prefix: str = "") -> dict[str, float | None]:
    return {
        f"{prefix}codebook_usage": None if use is None else use.used,
        f"{prefix}perplexity": None if use is None else use.perplexity,
        f"{prefix}codebook_entropy_nats": None if use is None else use.entropy,
        f"{prefix}top_share": None if use is None else use.top_share,
    }


def describe_tokenizer(result: Mapping[str, float | None]) -> str:
    """The figures as plain text, with a dash for those that a tokenizer does not have."""
    lines = [
        f"on {result['window_tokens']} held-out tokens whose patch is not constant;"
        f" {result['constant_share']:.1%} of all patches are constant",
        f"{'':<28} {'tokenizer':>10} {'k-means':>10}",
    ]
    for name, key, form in _BOTH:
        lines.append(f"{name:<28} {_cell(result.get(key), form):>10} {_cell(result.get(f'kmeans_{key}'), form):>10}")
    return "\n".join([*lines, *(f"{name:<28} {_cell(result.get(key), form):>10}" for name, key, form in _OWN)])


_BOTH = (
    ("codes used", "codebook_usage", "{:.1%}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("unigram entropy, nats", "codebook_entropy_nats", "{:.3f}"),
    ("most frequent code", "top_share", "{:.1%}"),
    ("bits told of position", "position_bits", "{:.3f}"),
    ("  by chance", "position_bits_by_chance", "{:.3f}"),
    ("bits told of colour", "colour_bits", "{:.3f}"),
    ("  by chance", "colour_bits_by_chance", "{:.3f}"),
    ("bits told of class", "class_bits", "{:.3f}"),
    ("  by chance", "class_bits_by_chance", "{:.3f}"),
)
_OWN = (
    ("PSNR, hard tokens, dB", "psnr_db", "{:.2f}"),
    ("soft minus hard, dB", "hard_soft_gap_db", "{:.2f}"),
    ("SSIM", "ssim", "{:.3f}"),
    ("ELBO, nats an image", "elbo_nats", "{:.1f}"),
    ("bits per dimension", "bits_per_dim", "{:.3f}"),
    ("  under the unigram prior", "bits_per_dim_unigram", "{:.3f}"),
    ("  by grey levels", "grey_level_bits_per_dim", "{:.3f}"),
)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    images: Tensor,
    compute: Compute,
    batch_size: int = 100,
    *,
    train: Tensor | None = None,
    density: bool = True,
    labels: Int[Tensor, "B"] | None = None,
) -> TokenizerResult:
    """Encode and decode a sample of held-out images, and compute all metrics.

    Args:
        images: B C H W, uint8 or float in [0, 1].
        train: training images, some thousands at most, to fit the k-means baseline; None for no baseline.
        density: whether p_ψ(x|z) was trained as a density; False where errors of pixels were minimised; then there is
            no bound.
        labels: the class of each image, -1 where it has none.
    """
    index = sample_index(images, tokenizer.stride)
    seen, classes = images[index], None if labels is None else labels[index]
    keep = varied_patches(seen, tokenizer.stride)
    ids, ratios, similarities = _reconstruct(tokenizer, seen, compute, batch_size)
    unigram_entropy = codebook_use(ids, tokenizer.vocab_size).entropy
    bound = None
    if density and isinstance(tokenizer, Posterior | Quantiser):
        bound = measure_bound(tokenizer, seen, ids, unigram_entropy, compute)
    fitted = None if train is None else fit_kmeans_baseline(train, tokenizer.vocab_size, tokenizer.stride)
    theirs = None if fitted is None else fitted.encode(seen).flatten(1)

    def information_of(codes: Int[Tensor, "B N"] | None) -> CodeInformation | None:
        if codes is None or not keep.any():
            return None
        return code_information(codes, seen, tokenizer.stride, keep, classes)

    return TokenizerResult(
        psnr_db=float(ratios.mean()),
        ssim=float(similarities.mean()),
        codebook=codebook_use(ids, tokenizer.vocab_size, keep),
        unigram_entropy=unigram_entropy,
        constant_share=float((~keep).double().mean()),
        soft_psnr_db=soft_psnr(tokenizer, seen, compute) if isinstance(tokenizer, Posterior) else None,
        bound=bound,
        kmeans_baseline=None if theirs is None else codebook_use(theirs, tokenizer.vocab_size, keep),
        information=information_of(ids),
        kmeans_information=information_of(theirs),
    )


@torch.no_grad()
def _reconstruct(
    tokenizer: Tokenizer, images: Tensor, compute: Compute, batch_size: int
) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Tokens, PSNR and SSIM of every image."""
    ids, ratios, similarities = [], [], []
    for part in images.split(batch_size):
        batch = as_unit_range(part.to(compute.device))
        with compute.autocast():
            codes = tokenizer.encode(batch)
            pictures = tokenizer.decode(codes)
        ids.append(codes.flatten(1).cpu())
        ratios.append(psnr(batch, pictures.float()).cpu())
        similarities.append(ssim(batch, pictures.float()).cpu())
    return torch.cat(ids), torch.cat(ratios), torch.cat(similarities)


def describe_training(result: Mapping[str, Any]) -> str:
    """One line: how well images come back, and how much of the codebook is in use."""
    return (
        f"{result['steps']} steps: PSNR {result['psnr_db']:.1f} dB on held-out images,"
        f" {100 * result['codebook_usage']:.1f} % of {result['vocab_size']} visual tokens in use,"
        f" perplexity {result['perplexity']:.0f}"
    )
