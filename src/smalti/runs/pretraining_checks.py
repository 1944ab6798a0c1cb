"""Checks of pretraining: the tokenizer before it starts, features during it, and its loss against a reference run.

A collapsed tokenizer is useless as a target, so it is refused before training. Features are checked by k-NN on a
few labelled images, and the loss by the nearest of the reference curves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.contracts import Tokenizer
from smalti.core.errors import RefusedError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data, unlabelled
from smalti.data.tokens import encode
from smalti.distributed.collectives import full_tensor
from smalti.evaluation.code_information import CodeInformation, code_information
from smalti.evaluation.features import Pooling, extract
from smalti.evaluation.pretraining import PixelLoss, TokenLoss
from smalti.evaluation.probe import leave_one_out_accuracy
from smalti.evaluation.reference_curves import Reference, Setup, nearest, references, standing
from smalti.evaluation.token_sample import fit_kmeans_baseline, sample_index
from smalti.functional.masking import Random
from smalti.functional.metrics import CodebookUse, codebook_use
from smalti.functional.patches import varied_patches
from smalti.models.decoder import Linear
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import ViT
from smalti.runs.pretrain_config import Online, Pretrain
from smalti.training.targets import Pixels

_TOKENS_A_CODE, _MIN_WINDOW = 12, 20_000
_MIN_PERPLEXITY, _MIN_USED, _MAX_POSITION = 0.6, 0.5, 0.9
_MIN_TOKENS_PER_CODE = 10
"""With so many tokens a code, a codebook that is used evenly shows all of its codes."""
_MIN_TOKENS = 100
"""With so many tokens the ratio of two perplexities is known to about 15 %; with fewer there is no verdict."""
_FIX = (
    "train it again with more --relaxation.spread, a smaller --tokenizer.vocab-size, more images or more --plan.steps, "
    "or go on all the same with --accept-tokenizer"
)
ONLINE = "knn"
"""The figure in metrics.jsonl."""
_POOLINGS: tuple[Pooling, ...] = ("mean",)


def gate(
    tokenizer: Tokenizer,
    held_out: Tensor,
    train: Tensor,
    compute: Compute,
    log: Log,
    *,
    accept: bool = False,
    labels: Tensor | None = None,
) -> None:
    """Accept or refuse a tokenizer (see `collapse_faults`), and log what its codes tell: seconds, and nothing changes.

    Args:
        held_out, train: images (B, C, H, W) as the tokenizer will see them; the k-means baseline is fitted to `train`.
        accept: report the faults, but accept the tokenizer.
        labels: the classes of the held-out images, -1 where there is none.

    Raises:
        RefusedError: it has collapsed; the message says what was measured and what to change.
    """
    index = sample_index(held_out, tokenizer.stride, max(_MIN_WINDOW, _TOKENS_A_CODE * tokenizer.vocab_size))
    seen = held_out[index]
    keep = varied_patches(seen, tokenizer.stride)
    baseline = fit_kmeans_baseline(train, tokenizer.vocab_size, tokenizer.stride)
    if baseline is None or int(keep.sum()) < _MIN_TOKENS:
        log.say(f"tokenizer: {int(keep.sum())} held-out tokens are too few to judge it by")
        return
    ids = encode(seen, tokenizer, compute).cpu()
    use = codebook_use(ids, tokenizer.vocab_size, keep)
    theirs = baseline.encode(seen).flatten(1)
    kmeans = codebook_use(theirs, tokenizer.vocab_size, keep)
    measured = (
        f"{use.used:.1%} of {tokenizer.vocab_size} codes and a perplexity of {use.perplexity:.1f} on {use.tokens} "
        f"held-out tokens, where k-means on the same patches has {kmeans.used:.1%} and {kmeans.perplexity:.1f}"
    )
    classes = None if labels is None else labels[index]
    information, usual = (code_information(codes, seen, tokenizer.stride, keep, classes) for codes in (ids, theirs))
    found = collapse_faults(use, kmeans, tokenizer.vocab_size) + information_faults(information, usual, ids.shape[1])
    if found and not accept:
        raise RefusedError(f"the tokenizer has collapsed: {' and '.join(found)}", cause=f"it has {measured}", fix=_FIX)
    log.say(f"tokenizer: {measured}" + (f"; collapsed, and accepted: {' and '.join(found)}" if found else ""))
    log.say(f"tokenizer: {information.describe()}; of k-means {usual.describe()}")


def collapse_faults(use: CodebookUse, kmeans: CodebookUse, vocab_size: int) -> list[str]:
    """The faults of a tokenizer; empty if it is accepted.

    Its perplexity must be 0.6 of that of k-means at least. Both are counted on the same patches, so the rule holds for
    few tokens too, where neither can be high. Half of the codes must be used. With fewer than ten tokens a code even a
    perfect codebook does not show all of its codes, so there it is half of those that k-means uses on these patches.
    """
    found = []
    if use.perplexity < _MIN_PERPLEXITY * kmeans.perplexity:
        found.append(f"its perplexity is {use.perplexity / kmeans.perplexity:.2f} of k-means' (least: 0.6)")
    enough = use.tokens >= _MIN_TOKENS_PER_CODE * vocab_size
    if use.used < _MIN_USED * (1.0 if enough else kmeans.used):
        than = "codes" if enough else "codes that k-means uses"
        found.append(f"less than half of the {than} are used")
    return found


def information_faults(information: CodeInformation, kmeans: CodeInformation, num_patches: int) -> list[str]:
    """The fault that codes tell the position of a patch and not what is there; empty if they do not.

    That is where they share 0.9 of the bits of the position, less what is shared by chance, and those of k-means at
    most half as many bits: images may be such that content and position are one. Where more than half of the bits are
    shared by chance there are too few tokens to tell.
    """
    all_bits, (shared, by_chance) = math.log2(num_patches), information.position
    fewest = by_chance + _MAX_POSITION * (all_bits - by_chance)
    if by_chance >= all_bits / 2 or shared < fewest or kmeans.position.bits > shared / 2:
        return []
    return [f"its codes tell where a patch is ({shared:.2f} of {all_bits:.2f} bits), and hardly what it shows"]


class OnlineProbe:
    """k-NN accuracy of each labelled image by all others, for the best block: not a figure to report.

    It uses a copy of the network, never compiled and never in training mode, so it does not affect training.
    """

    def __init__(self, every: int, backbone: ViT, images: InMemoryDataset, compute: Compute) -> None:
        self.every, self.images, self.compute = every, images, compute
        self.copy = backbone.build().to(compute.device)
        self.copy.requires_grad_(False)
        self.copy.eval()

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        assert isinstance(model, MaskedImageModel)
        weights = model.backbone.state_dict()  # of every rank a part, with fsdp
        self.copy.load_state_dict({name: full_tensor(value) for name, value in weights.items()})
        features = extract(self.copy, self.images, self.compute, poolings=_POOLINGS, dtype=torch.float16)
        accuracies = [leave_one_out_accuracy(x, self.images.labels) for x in features.values()]
        return {ONLINE: max(accuracies)}


def online_probe(config: Online, backbone: ViT, data: Data, compute: Compute, log: Log) -> OnlineProbe | None:
    """The configured evaluation, on images read in the same way as those of the run; None if there is none.

    Raises:
        DataError: the images have no labels.
        UsageError: the input images of the backbone are not square.
    """
    if not config.data:
        return None
    height, width = backbone.img_size
    require(height == width, f"online evaluation needs square images, and these are {height}x{width}", "leave it out")
    shown = replace(data, path=config.data, side=height, limit=config.limit)
    images = shown.load(log).train
    if len(images.classes) < 2:
        raise unlabelled(shown, config.data, f"no labels in {config.data}: --online.data needs some")
    return OnlineProbe(config.every, backbone, images.labelled(), compute)


def token_loss(values: Mapping[str, float]) -> float:
    """The loss of a step against the most likely tokens, in nats: without that of patch aggregation."""
    return values.get("hard", values.get("last", values["loss"]))


@dataclass(frozen=True)
class ReferenceComparison:
    """Compares a run with a reference after the same number of images. It does not affect training.

    Attributes:
        baseline: that of this run, as `Reference.baseline`; the entropy of the tokens of some whole training images.
    """

    reference: Reference
    setup: Setup
    baseline: float
    batch_size: int

    def __call__(self, step: int, values: Mapping[str, float]) -> str:
        """Text for the progress line; with soft targets the loss against hard tokens is compared."""
        images = step * self.batch_size
        theirs = self.reference.gain(images)
        if theirs is None:
            return "beyond the reference" if images > self.reference.images[-1] else ""
        if not self.setup.comparable(self.reference.setup):
            return f"reference {self.baseline - theirs:.3f}"
        gain = self.baseline - token_loss(values)
        return f"reference {self.baseline - theirs:.3f} ({standing(gain, theirs, self.setup.target)})"

    def loss_at(self, step: int) -> float | None:
        """The loss of the reference, shifted so that its baseline equals that of this run."""
        theirs = self.reference.gain(step * self.batch_size)
        return None if theirs is None else self.baseline - theirs

    def describe(self) -> str:
        """Which run the reference is, and how this run differs from it."""
        differing = ", ".join(self.setup.differences(self.reference.setup)) or "the same settings"
        moved = (
            f", moved to the unigram entropy here, {self.baseline:.3f} nats" if self.setup.target == "tokens" else ""
        )
        far = "" if self.setup.comparable(self.reference.setup) else "; too far apart to be ahead or behind"
        return (
            f"{self.reference.name}, a run of ours on {self.reference.data}{moved}; here (and there): {differing}{far}"
        )

    def describe_end(self, ended_at: TokenLoss | PixelLoss) -> str:
        """The final figures of both runs, each on its own held-out images."""
        reference, ended = self.reference, f"reference {self.reference.name} ended"
        after = f"on its held-out images, after {reference.setup.num_images} images; here it is"
        if isinstance(ended_at, TokenLoss):
            gain = ended_at.unigram_entropy_nats - ended_at.loss_nats
            said = f"{ended} {reference.held_out_gain:.3f} nats below the unigram entropy {after} {gain:.3f}"
        else:
            said = f"{ended} at a loss of {reference.held_out_loss:.3f} {after} {ended_at.pixel_loss:.3f}"
        return f"{said} after {self.setup.num_images}"


def comparison_of(run: Pretrain, vocab_size: int | None, baseline: float) -> ReferenceComparison | None:
    """The comparison of a run with its nearest reference; None if it is not wanted, or there is none.

    Args:
        vocab_size: None for pixels.
        baseline: as in `ReferenceComparison`.
    """
    setup = setup_of(run, vocab_size) if run.reference and not run.second_tokenizer else None
    if setup is None or (reference := nearest(setup, references())) is None:
        return None
    return ReferenceComparison(reference, setup, baseline, run.plan.batch_size)


def setup_of(run: Pretrain, vocab_size: int | None) -> Setup | None:
    """The compared settings of a run; None for pixels whose errors are in other units than those of the references."""
    pixels, backbone = isinstance(run.target, Pixels), run.backbone
    if pixels and run.target != Pixels():
        return None
    return Setup(
        target="pixels" if pixels else "tokens",
        vocab_size=vocab_size,
        num_patches=math.prod(backbone.grid),
        num_masked_patches=run.masking.count(backbone.grid),
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_images=run.plan.steps * run.plan.batch_size,
        masks="random" if isinstance(run.masking, Random) else "blocks",
        decoder="linear" if isinstance(run.decoder, Linear) else "cross-attention",
        channels=backbone.in_chans,
        optimiser=run.optimiser.matrices,
    )
