"""A kind of tokenizer of your own, and a backbone that learns to predict its tokens.

    python examples/own_tokenizer.py ~/Pictures --out backbone.safetensors --steps 2000
    smalti evaluate backbone.safetensors ~/labelled --num-heads 3

The token of a patch is its mean colour, each channel rounded to one of a few levels: nothing to train or to fit. A run
folder names parts of the package only, so a part from outside is handed over here, and the weights are saved as timm's.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from smalti import ImageTokenizer
from smalti.core.compute import choose_compute
from smalti.core.log import Log
from smalti.models.mim import MaskedImageModel
from smalti.models.vit import as_unit_range
from smalti.recipes import tiny
from smalti.runs.pretrain import prepare
from smalti.training.loop import fit


@dataclass(frozen=True)
class MeanColour:
    """What every configuration of a tokenizer has, and one setting of its own."""

    levels: int = 6  # of each channel
    stride: int = 8  # pixels between tokens
    in_chans: int = 3

    @property
    def vocab_size(self) -> int:
        return self.levels**self.in_chans


class MeanColourTokenizer(ImageTokenizer):
    def __init__(self, config: MeanColour) -> None:
        super().__init__(config)
        self.levels = config.levels
        self.weights: Tensor
        self.register_buffer("weights", config.levels ** torch.arange(config.in_chans)[:, None, None])

    def encode(self, images: Tensor) -> Tensor:  # B C H W -> B h w
        means = F.avg_pool2d(as_unit_range(images), self.stride)
        return ((means * self.levels).long().clamp(max=self.levels - 1) * self.weights).sum(1)

    def decode(self, ids: Tensor) -> Tensor:  # B h w -> B C H W
        colours = (ids[:, None] // self.weights % self.levels + 0.5) / self.levels
        return colours.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a folder of images")
    parser.add_argument("--out", default="backbone.safetensors")
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args(arguments)

    log, compute, start = Log(), choose_compute("auto", "auto"), tiny.pretrain()
    plan = replace(start.plan, steps=given.steps, repeat=True)  # also of fewer images than a batch has rows
    images = replace(tiny.DATA, path=given.images).open(log)
    config = replace(start, plan=plan).normalised(images.train)
    tokenizer = MeanColourTokenizer(MeanColour()).to(compute.device)
    trainer, batches = prepare(config, images, tokenizer, compute, log)
    fit(trainer, batches, plan, log, title="pretrain", compute=compute)
    assert isinstance(trainer.eval_model, MaskedImageModel)
    save_file(trainer.eval_model.backbone.state_dict(), given.out)
    print(f"written: {given.out}; it predicted {tokenizer.vocab_size} mean colours")


if __name__ == "__main__":
    main()
