"""One step of pretraining, from a batch in memory to updated weights, against the usual ways to write it.

    python benchmarks/pretrain_step.py --json                # ViT-B/16, 224 x 224, batch 16
    python benchmarks/pretrain_step.py --model tiny --json   # ViT-Tiny, 32 x 32, patch 4, batch 256
    python benchmarks/pretrain_step.py --decoder linear --json

Ours is what `smalti pretrain` trains: `runs.pretrain.prepare` makes it, with compiled blocks. With `--decoder linear`
it is BEiT as published, 75 of 196 patches masked; otherwise the encoder sees a quarter of the patches, and half of the
others are predicted by a block of cross-attention, 512 wide. Its peers have the same sizes: transformers'
BeitForMaskedImageModeling (extra `interop`) in bf16 autocast and in float32, a plain network of that kind in bf16
autocast, eager and under torch.compile, and transformers' ViTMAEForPreTraining, which sees a quarter of the patches too
and has its own decoder. A step is forward, backward, clipping and AdamW (fused for all), under stochastic depth (but
for MAE, which has none). Peers get images that are normalised already; visual tokens are given, except `with_tokens`
(ViT-Tiny only), where both sides run the same tokenizer first.

All run in one process in turn, the order swapped from round to round, each time after a 2048 x 2048 x 2048 product in
bf16: the peak that `peak_fraction` is a share of. Ratios are medians over the rounds of a peer's time divided by ours.
On a machine that others use, `--threads 1 --clock processor` counts processor time, which hardly depends on them.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from printing import print_figures
from torch import Tensor, nn

from smalti.core.compute import Compute, choose_compute
from smalti.core.contracts import Batch, Tokenizer
from smalti.core.rng import fold
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data, TrainingData
from smalti.data.tokens import TokenizedBatches, tokenized
from smalti.data.transforms.views import NO_JITTER
from smalti.exporting.huggingface import image_size, sizes_of
from smalti.functional.masking import Blockwise, Random, mask_index
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.vit import ViT
from smalti.runs.pretrain import Pretrain, prepare
from smalti.tokenizers.dvae import DVAE
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan

Step = Callable[[Batch], object]
"""What makes a step on a batch."""


@dataclass(frozen=True)
class Case:
    """A network, what is masked from it, its tokenizer, and how many images a step sees.

    Attributes:
        masking: of ours with a linear decoder, and of the peers that have mask tokens in the encoder.
        decoder: of ours; with cross-attention three quarters of the patches are masked, each by itself.
    """

    backbone: ViT
    masking: Blockwise
    tokenizer: DVAE
    batch_size: int
    decoder: Linear | CrossAttention

    def flops(self) -> float:
        """Multiplications and additions of matrix products in one step, forward and twice that backward, for an image.

        They are those of ours. Patch embedding needs no gradient of its input. Softmax, normalisation and the like do
        not count.
        """
        vit, patches = self.backbone, self.backbone.grid[0] * self.backbone.grid[1]
        embed = 2 * patches * vit.patch_size**2 * vit.in_chans * vit.embed_dim
        if isinstance(self.decoder, Linear):
            return 3 * self._flops_linear() + 2 * embed
        return 3 * self._flops_visible(self.decoder) + 2 * embed

    def _flops_linear(self) -> float:
        """Forward: blocks of all positions, of which the last does only what masked patches and [S] need; the head."""
        vit, masked = self.backbone, self.masking.count(self.backbone.grid)
        every = vit.grid[0] * vit.grid[1] + 1
        blocks = (vit.depth - 1) * block_flops(vit, every, every) + block_flops(vit, every, masked + 1)
        return blocks + 2 * masked * vit.embed_dim * self.tokenizer.vocab_size

    def _flops_visible(self, decoder: CrossAttention) -> float:
        """Forward: blocks of visible patches and [S], the decoder, the head at predicted patches."""
        vit, width = self.backbone, decoder.width or self.backbone.embed_dim
        masked = VISIBLE.count(vit.grid)
        seen, asked = vit.grid[0] * vit.grid[1] - masked + 1, round(decoder.predicted * masked)
        products = asked * (2 + 2 * decoder.mlp_ratio) + 2 * seen  # q, proj, MLP of queries; k, v of what is read
        block = 2 * width**2 * products + 4 * asked * seen * width
        head = 2 * asked * width * self.tokenizer.vocab_size
        return (
            vit.depth * block_flops(vit, seen, seen) + 2 * seen * vit.embed_dim * width + decoder.depth * block + head
        )


def block_flops(vit: ViT, every: int, wanted: int) -> float:
    """Forward pass of a block of the encoder that has `every` position and computes outputs for those `wanted`."""
    width = vit.embed_dim
    return 2 * width**2 * (3 * every + (1 + 2 * vit.mlp_ratio) * wanted) + 4 * wanted * every * width


VISIBLE = Random(ratio=0.75)
"""What is masked where the encoder sees visible patches alone."""


CASES = {
    "base": Case(
        ViT(),
        Blockwise(75 / 196),
        DVAE(vocab_size=8192, stride=8),
        16,
        CrossAttention(width=512, num_heads=8, predicted=0.5),
    ),
    "tiny": Case(
        ViT(img_size=(32, 32), patch_size=4, embed_dim=192, depth=12, num_heads=3),
        Blockwise(),
        DVAE(vocab_size=1024, stride=4),
        256,
        CrossAttention(),
    ),
}


class PlainBlock(nn.Module):
    """A Transformer block as tutorials write it."""

    def __init__(self, dim: int, heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def attention(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).reshape(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, d))

    def kept(self, branch: Tensor) -> Tensor:
        keep = 1 - self.drop_path
        return branch * torch.empty(len(branch), 1, 1, dtype=branch.dtype).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.kept(self.attention(self.norm1(x)))
        return x + self.kept(self.mlp(self.norm2(x)))


class PlainMIM(nn.Module):
    """Masked image modeling as tutorials write it, with the head at masked patches only."""

    def __init__(self, vit: ViT, vocab_size: int) -> None:
        super().__init__()
        d, patches = vit.embed_dim, vit.grid[0] * vit.grid[1]
        self.patch_embed = nn.Conv2d(vit.in_chans, d, vit.patch_size, vit.patch_size)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, d)), nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, d))
        rates = torch.linspace(0, vit.drop_path_rate, vit.depth).tolist()
        self.blocks = nn.Sequential(
            *(PlainBlock(d, vit.num_heads, int(d * vit.mlp_ratio), rate) for rate in rates),
        )
        self.norm, self.head = nn.LayerNorm(d, eps=1e-6), nn.Linear(d, vocab_size)

    def forward(self, image: Tensor, mask: Tensor, index: Tensor, ids: Tensor) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))[:, 1:]
        x = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.gather(1, index).flatten())


def transformers_sizes(vit: ViT) -> dict[str, Any]:
    """The sizes of the backbone, as configurations of transformers call them."""
    return {**sizes_of(vit), "image_size": image_size(vit), "layer_norm_eps": 1e-6}


def transformers_loss(vit: ViT, vocab_size: int) -> tuple[nn.Module, Callable[[Batch, Tensor], Tensor]]:
    """The model of transformers with absolute positions and without layer scale, and its loss."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    config = BeitConfig(
        vocab_size=vocab_size,
        **transformers_sizes(vit),
        use_mask_token=True,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=0.0,
        drop_path_rate=vit.drop_path_rate,
    )
    model = BeitForMaskedImageModeling(config).train()

    def loss(batch: Batch, image: Tensor) -> Tensor:
        assert batch.ids is not None
        return model(image, bool_masked_pos=batch.mask, labels=batch.ids[batch.mask]).loss

    return model, loss


def mae_loss(vit: ViT) -> tuple[nn.Module, Callable[[Batch, Tensor], Tensor]]:
    """MAE's pretraining in transformers, with its decoder as published (512 wide, eight blocks), and its loss."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        **transformers_sizes(vit),
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config).train()
    return model, lambda _, image: model(image).loss


def usual_step(model: nn.Module, loss: Callable[[Batch, Tensor], Tensor], dtype: torch.dtype) -> Step:
    """The step that a training script makes of a model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05, fused=True)

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(batch, batch.image)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_step(case: Case, *, compiled: bool) -> Step:
    """The plain network in bf16 autocast."""
    model = PlainMIM(case.backbone, case.tokenizer.vocab_size)
    called = torch.compile(model) if compiled else model
    return usual_step(model, lambda b, image: called(image, b.mask, b.mask_index, b.ids), torch.bfloat16)


def transformers_step(case: Case, dtype: torch.dtype) -> Step:
    """The network of transformers."""
    return usual_step(*transformers_loss(case.backbone, case.tokenizer.vocab_size), dtype)


PEERS: dict[str, Callable[[Case, bool], Step]] = {
    "transformers_bf16": lambda case, _: transformers_step(case, torch.bfloat16),
    "transformers_mae_bf16": lambda case, _: usual_step(*mae_loss(case.backbone), torch.bfloat16),
    "eager_bf16": lambda case, _: plain_step(case, compiled=False),
    "transformers_fp32": lambda case, _: transformers_step(case, torch.float32),
    "compiled_bf16": lambda case, compiled: plain_step(case, compiled=compiled),
}


def ours(case: Case, compute: Compute, compiled: bool) -> tuple[Trainer, TokenizedBatches]:
    """What `smalti pretrain` begins with, on random images."""
    vit, rows = case.backbone, case.batch_size
    pixels = torch.randint(256, (rows, vit.in_chans, *vit.img_size), dtype=torch.uint8)
    images = InMemoryDataset(pixels, torch.zeros(rows, dtype=torch.int64))
    config = Pretrain(
        data=Data(side=vit.img_size[0]),
        backbone=vit,
        masking=case.masking if isinstance(case.decoder, Linear) else VISIBLE,
        decoder=case.decoder,
        jitter=NO_JITTER,
        plan=Plan(batch_size=rows),
        compile="on" if compiled else "off",
    )
    trainer, batches = prepare(config, TrainingData(images, images), case.tokenizer.build(), compute)
    trainer.objective.train()
    assert isinstance(batches, TokenizedBatches)
    return trainer, batches


def contenders(case: Case, against: list[str], compute: Compute, compiled: bool) -> dict[str, Callable[[], object]]:
    """Every way to make a step. All see the same images, masks and visual tokens."""
    torch.manual_seed(0)
    trainer, batches = ours(case, compute, compiled)
    raw, tokenizer = batches.batches(0), batches.tokenizer
    given = tokenized(raw, tokenizer, compute)
    usual = with_blocks(replace(given, image=given.image.float() / 127.5 - 1), case)
    peers = {name: PEERS[name](case, compiled) for name in against}
    steps: dict[str, Callable[[], object]] = {"smalti": partial(trainer.train_step, given, compute, with_metrics=False)}
    for name, step in peers.items():
        steps[name] = partial(step, usual)
    if raw.token_image is None and "compiled_bf16" in peers:
        steps["tokens_smalti"] = lambda: trainer.train_step(
            tokenized(raw, tokenizer, compute, batches.chunk), compute, with_metrics=False
        )
        steps["tokens_compiled_bf16"] = lambda: peers["compiled_bf16"](
            with_tokens(usual, raw.image, tokenizer, compute)
        )
    return steps


def with_blocks(batch: Batch, case: Case) -> Batch:
    """The batch with the masks of those that have mask tokens in the encoder."""
    grid = case.backbone.grid
    mask = case.masking(fold(0, np.arange(len(batch.key))), grid)
    index, weight = (torch.from_numpy(values) for values in mask_index(mask, case.masking.count(grid)))
    return replace(batch, mask=torch.from_numpy(mask), mask_index=index, mask_weight=weight)


def with_tokens(batch: Batch, image: Tensor, tokenizer: Tokenizer, compute: Compute) -> Batch:
    """The batch with the visual tokens of its images, the usual way."""
    with torch.no_grad(), compute.autocast():
        return replace(batch, ids=tokenizer.encode(image).flatten(1))


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    began = clock()
    call()
    return clock() - began


def compare(case: Case, options: argparse.Namespace, compute: Compute) -> dict[str, object]:
    """Everything measured."""
    compiled = options.compile == "on"
    steps = contenders(case, options.against, compute, compiled)
    first = {name: seconds_of(step) for name, step in steps.items()}
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    square = torch.randn(2048, 2048).bfloat16()
    times: dict[str, list[float]] = {name: [] for name in steps}
    peak: list[float] = []
    for step in steps.values():
        step()
    for number in range(options.rounds):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            peak.append(seconds_of(lambda: square @ square, clock))
            times[name].append(seconds_of(steps[name], clock))
    seconds = {name: statistics.median(found) for name, found in times.items()}
    flops = 2 * 2048**3 / statistics.median(peak)
    result: dict[str, object] = {}
    for name in options.against:
        result[f"ratio_vs_{name}"] = ratio(times[name], times["smalti"])
    if "tokens_smalti" in times:
        result["ratio_vs_compiled_bf16_with_tokens"] = ratio(times["tokens_compiled_bf16"], times["tokens_smalti"])
        result["images_per_second_with_tokens"] = round(case.batch_size / seconds["tokens_smalti"], 2)
    return result | {
        "peak_fraction": round(case.flops() * case.batch_size / seconds["smalti"] / flops, 3),
        "images_per_second": round(case.batch_size / seconds["smalti"], 2),
        "peak_gflops": round(flops / 1e9),
        "gflop_an_image": round(case.flops() / 1e9, 2),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "seconds_of_the_first_step": {name: round(value, 2) for name, value in first.items()},
    }


def ratio(theirs: list[float], mine: list[float]) -> float:
    """How many times faster ours is: the median over the rounds."""
    return round(statistics.median(t / m for t, m in zip(theirs, mine, strict=True)), 3)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CASES), default="base")
    parser.add_argument("--batch", type=int, help="images; 16 of base, 256 of tiny unless given")
    parser.add_argument("--depth", type=int, help="blocks; 12 unless given")
    parser.add_argument("--against", nargs="*", choices=tuple(PEERS), help="peers; all of base, the last of tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decoder", choices=("linear", "cross-attention"), default="cross-attention", help="of ours")
    parser.add_argument("--compile", choices=("on", "off"), default="on", help="off: nothing is compiled")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of ours")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor: with one thread only"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.against is None:
        options.against = list(PEERS) if options.model == "base" else ["compiled_bf16"]

    if options.clock == "processor" and options.threads > 1:
        parser.error("threads that wait for each other use processor time too: --clock processor with --threads 1")
    torch.set_num_threads(options.threads)
    case = CASES[options.model]
    case = replace(
        case,
        batch_size=options.batch or case.batch_size,
        backbone=replace(case.backbone, depth=options.depth or case.backbone.depth),
        decoder=Linear() if options.decoder == "linear" else case.decoder,
    )
    compute = choose_compute("cpu", options.precision)
    names = ["torch", *(["transformers"] if any(n.startswith("transformers") for n in options.against) else [])]
    result = compare(case, options, compute) | {
        "model": options.model,
        "decoder": options.decoder,
        "batch": case.batch_size,
        "rounds": options.rounds,
        "precision": str(compute.dtype).removeprefix("torch."),
        "gflops": dict(compute.gflops),
        "threads": options.threads,
        "clock": options.clock,
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in names},
    }
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
