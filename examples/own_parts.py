"""Parts of your own in their places: images in memory, masks that follow them, a target, a schedule, a log.

    python examples/own_parts.py images.npy backbone.safetensors 2000    # uint8, n x H x W x 3; what to write; steps
    smalti evaluate backbone.safetensors ~/labelled --num-heads 3

Predicted are the directions of the gradients in masked patches, as in MaskFeat (Wei et al. 2022), and patches of much
contrast are masked more often. docs/own-parts.md lists the places.
"""

import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from smalti.core.compute import choose_compute
from smalti.core.contracts import Batch, Batches, BatchWrapper, StepOutput
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import split_held_out
from smalti.functional.noise import gumbel_noise
from smalti.functional.patches import gather_rows, patchify
from smalti.models.mim import build_mim
from smalti.models.vit import as_unit_range
from smalti.recipes import tiny
from smalti.training.loop import fit
from smalti.training.masked_batches import training_batches
from smalti.training.objectives import MaskedImageModeling
from smalti.training.trainer import Trainer

BINS, SIZE = 9, tiny.pretrain().backbone.patch_size


@dataclass(frozen=True)
class SalientMasks(BatchWrapper):
    batches: Batches

    def __call__(self, step: int) -> Batch:  # masks of the same size, drawn in proportion to the contrast of patches
        batch = self.batches(step)
        mask, index, _ = batch.masks
        contrast = patchify(as_unit_range(batch.image), SIZE).std(-1) + 1e-3
        drawn = contrast.log() + gumbel_noise(batch.key, mask.shape[1], stream=8)
        index = drawn.topk(index.shape[1]).indices.sort().values
        return replace(batch, mask=torch.zeros_like(mask).scatter_(1, index, True), mask_index=index)


def directions(images: Tensor) -> Tensor:  # B C H W -> B N BINS
    down, right = torch.gradient(as_unit_range(images).mean(1), dim=(1, 2))
    bins = (torch.atan2(down, right) / math.pi % 1 * BINS).long().clamp(max=BINS - 1)
    lengths = F.one_hot(bins, BINS) * torch.hypot(down, right)[..., None]
    return F.normalize(F.avg_pool2d(lengths.permute(0, 3, 1, 2), SIZE).flatten(2).mT, dim=-1)


def target(predicted: Tensor, batch: Batch, weight: Tensor, with_metrics: bool = True) -> StepOutput:
    error = (predicted - gather_rows(directions(batch.image), batch.masks[1])).square().mean(-1)
    return StepOutput((error * weight).sum(), weight.sum(), {})


def main(array: str, out: str, steps: str) -> None:
    compute, log, start = choose_compute(), Log(), tiny.pretrain()
    log.also = print  # every line of metrics
    pixels = torch.from_numpy(np.load(array)).permute(0, 3, 1, 2).contiguous()
    images = split_held_out(InMemoryDataset(pixels, torch.full((len(pixels),), -1)), 0.05)  # -1: no label
    config = replace(start, plan=replace(start.plan, steps=int(steps), repeat=True)).normalised(images.train)
    plan = config.plan
    model = build_mim(config.backbone, BINS, config.seed, config.decoder).to(compute.device)
    trainer = Trainer(MaskedImageModeling(model, target), config.optimiser, plan)
    trainer.lr = lambda step: config.optimiser.lr * min(1, step / 100, (plan.steps + 1 - step) / 500)
    batches = training_batches(config.views(None), images, config.data, plan.batch_size, compute, log)
    fit(trainer, SalientMasks(batches), plan, log, title="pretrain", compute=compute)
    save_file(model.backbone.state_dict(), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
