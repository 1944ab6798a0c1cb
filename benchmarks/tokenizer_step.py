"""A training step of a discrete VAE against the usual way to write it: float32, contiguous, eager, all tensors in full.

    python benchmarks/tokenizer_step.py --json             our small architecture with 8192 codes, 112 x 112
    python benchmarks/tokenizer_step.py --dalle --json     DALL-E's; the peer is the PyPI package dall-e (extra `peers`)

Both train on the same images in one process, one after the other, the order swapped from round to round: forward,
backward, clipping, AdamW, batch in memory to updated weights. `step_ratio_vs_fp32_eager` is the median over the rounds
of the peer's processor time divided by ours (`OMP_NUM_THREADS=1` where other processes want the cores too).
`peak_over_scores` is how far memory rises in a step of ours above what is there between steps (weights, moments),
in units of the scores of all codes, B·V·h·w·4 bytes; `peer_peak_over_scores` likewise. `share_of_pretraining_step` is
the time to encode a batch with our tokenizer, divided by that of a ViT-B/16 training step on as many images.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from printing import print_figures
from torch import Tensor, nn

from smalti.core.compute import Compute, choose_compute
from smalti.core.contracts import Batch
from smalti.core.rng import Stream, fold, signed
from smalti.functional.masking import Blockwise, mask_index
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.recipes import small
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.dvae import DVAE
from smalti.training.objectives import DiscreteVAEObjective, MaskedImageModeling
from smalti.training.optim import Optimiser
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan

_RELAXATION = small.train_tokenizer().relaxation


class Usual(nn.Module):
    """A discrete VAE as one would write it down, around an encoder to scores and a decoder to mean and log-scale."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, positions_unit: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.unit = encoder, decoder, positions_unit

    def forward(self, images: Tensor, temperature: float) -> Tensor:
        x = 0.8 * (images / 255) + 0.1
        scores = self.encoder(x)
        mean, log_scale = self.decoder(F.gumbel_softmax(scores, tau=temperature, dim=1)).chunk(2, dim=1)
        nll = math.log(2) + log_scale + torch.log(x * (1 - x)) + (torch.logit(x) - mean).abs() * torch.exp(-log_scale)
        log_q = F.log_softmax(scores, dim=1)
        kl = math.log(scores.shape[1]) + (log_q.exp() * log_q).sum(1).mean()
        marginal = scores.softmax(1).mean((0, 2, 3))
        return nll.mean() + self.unit * (_RELAXATION.beta * kl + _RELAXATION.spread * (marginal * marginal.log()).sum())


class OurEncoder(nn.Module):
    """Our small architecture, layer for layer, from pixels in [ε, 1-ε] to scores."""

    def __init__(self, config: DVAE) -> None:
        super().__init__()
        self.stride = config.stride
        built = config.build()
        self.embed, self.blocks, self.to_logits = built.embed, built.encoder, built.to_logits

    def forward(self, x: Tensor) -> Tensor:
        return self.to_logits(self.blocks(self.embed(F.pixel_unshuffle(torch.logit(x), self.stride))))


class OurDecoder(nn.Module):
    """The same from weights of the codes to mean and log-scale."""

    def __init__(self, config: DVAE) -> None:
        super().__init__()
        built = config.build()
        self.codebook, self.blocks, self.to_pixels = built.codebook, built.decoder, built.to_pixels
        self.stride = config.stride

    def forward(self, weights: Tensor) -> Tensor:
        both = self.to_pixels(self.blocks(self.codebook(weights))).chunk(2, dim=1)
        return torch.cat([F.pixel_shuffle(half, self.stride) for half in both], dim=1)


def usual_step(config: DVAE | DallE, batch: Batch, settings: Optimiser) -> Callable[[], None]:
    """A step of the peer."""
    torch.manual_seed(0)
    if isinstance(config, DallE):
        import dall_e

        encoder = dall_e.Encoder(n_hid=config.width, vocab_size=config.vocab_size)
        decoder = dall_e.Decoder(n_hid=config.width, vocab_size=config.vocab_size)
        for half in (encoder, decoder):
            half.requires_grad_(True)
    else:
        encoder, decoder = OurEncoder(config), OurDecoder(config)
    model = Usual(encoder, decoder, 1 / (config.in_chans * config.stride**2)).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def step() -> None:
        model(batch.image, 0.5).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(config: DVAE | DallE, batch: Batch, settings: Optimiser, compute: Compute) -> Callable[[], None]:
    """A step of ours, as `smalti train-tokenizer` makes it."""
    trainer = Trainer(DiscreteVAEObjective(config.build(), _RELAXATION, 1000), settings, Plan(1000), ema_decay=0.999)
    return lambda: _ignore(trainer.train_step(batch, compute))


def _ignore(_: object) -> None:
    """Nothing."""


def peak_bytes(step: Callable[[], None]) -> int | None:
    """How far memory rises during a second step above what it was before; None where the system does not say.

    To be called before `choose_compute`, which lets freed memory stay with the process.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    step()
    reset.write_text("5")
    before = _kilobytes(status, "VmRSS")
    step()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{field}:"))


def seconds(step: Callable[[], object]) -> float:
    """Processor time of one call, of all threads together."""
    began = time.process_time()
    step()
    return time.process_time() - began


def share_of_pretraining_step(config: DVAE, batch: Batch, compute: Compute, rounds: int) -> float:
    """The median over rounds of the time to encode a batch, divided by that of a ViT-B/16 training step on as many."""
    tokenizer = config.build().eval().requires_grad_(False)
    masking, backbone, count = Blockwise(), ViT(), len(batch.image)
    mask = masking(fold(0, np.arange(count), Stream.MASK), backbone.grid)
    index, weight = mask_index(mask, masking.count(backbone.grid))
    masked = Batch(
        image=torch.zeros(count, 3, *backbone.img_size, dtype=torch.uint8),
        index=batch.index,
        key=batch.key,
        ids=torch.zeros(mask.shape, dtype=torch.int64),
        mask=torch.from_numpy(mask),
        mask_index=torch.from_numpy(index),
        mask_weight=torch.from_numpy(weight),
    )
    trainer = Trainer(MaskedImageModeling(build_mim(backbone, config.vocab_size)), Optimiser(), Plan(1000))

    @torch.no_grad()
    def encode() -> None:
        with compute.autocast():
            tokenizer.encode(batch.image)

    for warm in (encode, lambda: trainer.train_step(masked, compute)):
        warm()
    ratios = [seconds(encode) / seconds(lambda: trainer.train_step(masked, compute)) for _ in range(rounds)]
    return statistics.median(ratios)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dalle", action="store_true", help="DALL-E's architecture in the place of our small one")
    parser.add_argument("--side", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, help="channels, where not those of the architecture")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--no-share", action="store_true", help="leave the pretraining step out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    start = small.train_tokenizer()
    assert isinstance(start.tokenizer, DVAE)
    width = options.width or (DallE().width if options.dalle else start.tokenizer.width)
    config = (
        DallE(vocab_size=options.vocab_size, width=width)
        if options.dalle
        else DVAE(vocab_size=options.vocab_size, stride=8, width=width, depth=start.tokenizer.depth)
    )
    rng = torch.Generator().manual_seed(1)
    shape = (options.batch, 3, options.side, options.side)
    keys = torch.from_numpy(signed(fold(0, np.arange(options.batch))))
    images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
    batch = Batch(image=images, index=torch.arange(options.batch), key=keys)
    scores = options.batch * options.vocab_size * (options.side // config.stride) ** 2 * 4
    assumed = Compute(torch.device("cpu"), torch.float32 if options.precision == "fp32" else torch.bfloat16)
    peaks = [
        peak_bytes(our_step(config, batch, start.optimiser, assumed)),
        peak_bytes(usual_step(config, batch, start.optimiser)),
    ]
    compute = choose_compute("cpu", options.precision)
    steps = {
        "ours": our_step(config, batch, start.optimiser, compute),
        "peer": usual_step(config, batch, start.optimiser),
    }
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(steps[name]))
    ratios = sorted(peer / ours for peer, ours in zip(times["peer"], times["ours"], strict=True))
    result: dict[str, object] = {
        "architecture": "dalle" if options.dalle else "small",
        "step_ratio_vs_fp32_eager": round(statistics.median(ratios), 3),
        "lowest_ratio": round(ratios[0], 3),
        "highest_ratio": round(ratios[-1], 3),
        "smalti_images_per_processor_second": round(options.batch / statistics.median(times["ours"]), 3),
        **{
            name: None if peak is None else round(peak / scores, 3)
            for name, peak in zip(("peak_over_scores", "peer_peak_over_scores"), peaks, strict=True)
        },
        "scores_bytes": scores,
        "precision": str(compute.dtype).removeprefix("torch."),
        "gflops": dict(compute.gflops),
        "batch": options.batch,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if isinstance(config, DVAE) and not options.no_share:
        share = share_of_pretraining_step(config, batch, compute, rounds=3)
        result["share_of_pretraining_step"] = round(share, 4)
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
