"""What the two stages are worth as a model of images: BEiT as published, at the sizes of nano, on the embedded images.

    OMP_NUM_THREADS=1 python benchmarks/vae_view.py --json > docs/results/vae-view/result.json

Trains the tokenizer and the masked image model (about eight minutes of one core) and reads the bound that `smalti
pretrain` measures, before and after stage two. The peer in the same process: the same images as PNG files.
"""

import argparse
import io
import json
import math
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smalti.core.compute import Compute, choose_compute
from smalti.core.log import Log
from smalti.data.datasets.open import EMBEDDED
from smalti.evaluation.bound import describe
from smalti.functional.masking import Blockwise
from smalti.models.decoder import Linear
from smalti.recipes import nano
from smalti.runs import pretrain, train_tokenizer
from smalti.runs.pretrain_config import Pretrain

_KEPT = ("loss_nats", "unigram_entropy_nats", "accuracy", "train_images", "bound")


def as_published() -> Pretrain:
    """Stage two of `nano` as BEiT has it: 40 % masked in blocks, mask tokens in the encoder, AdamW for all weights."""
    recipe = nano.pretrain()
    optimiser = replace(recipe.optimiser, lr=2e-3, matrices="adamw")
    return replace(recipe, masking=Blockwise(ratio=0.4), decoder=Linear(), optimiser=optimiser)


def measure(folder: Path, tokenizer_steps: int, steps: int, limit: int | None, compute: Compute) -> dict[str, Any]:
    """Both stages in `folder`; runs that are there already are taken as they are."""
    first, second = nano.train_tokenizer(), as_published()
    data = replace(first.data, path=EMBEDDED, limit=limit)
    tokenizer = replace(
        first, data=data, out=str(folder / "tokenizer"), plan=replace(first.plan, steps=tokenizer_steps)
    )
    backbone = replace(
        second,
        data=data,
        tokenizer=tokenizer.out,
        accept_tokenizer=True,  # after a few steps, in a test
        out=str(folder / "pretrain"),
        plan=replace(second.plan, steps=steps),
    )
    stages = (train_tokenizer.main, tokenizer), (pretrain.main, backbone)
    for main, config in stages:
        if not (Path(config.out) / "result.json").exists():
            main(config, compute=compute)  # type: ignore[arg-type]
    found, stage_one = (json.loads((Path(config.out) / "result.json").read_text()) for _, config in reversed(stages))
    images = data.load(Log()).held_out.images
    return {
        "tokenizer_steps": tokenizer_steps,
        "steps": steps,
        "precision": str(compute.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "vocab_size": stage_one["vocab_size"],
        "psnr_db": stage_one["psnr_db"],
        **{key: found[key] for key in _KEPT},
        "png_bits_per_dim": png_bits(images),
    }


def png_bits(images: Tensor) -> float:
    """Bits a sub-pixel of grey images as optimised PNG files."""
    sizes = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(np.asarray(image[0])).save(file, "png", optimize=True)
        sizes.append(len(file.getvalue()))
    return 8 * sum(sizes) / images.numel()


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Every number of docs/vae-view.md, as it stands there."""
    bound, vocab_size = result["bound"], result["vocab_size"]
    patches, masked, loss = bound["patches"], bound["masked_patches"], result["loss_nats"]
    unigram, trained = (bound[f"{name}_rate_nats_per_patch"] for name in ("unigram", "trained"))
    visible = patches * trained - masked * loss
    total = bound["trained_bound_grey_level_bits_per_dim"]
    untrained_loss = (patches * bound["untrained_rate_nats_per_patch"] - visible) / masked
    return {
        "ln V": f"{math.log(vocab_size):.3f}",
        "PSNR": f"{result['psnr_db']:.1f} dB",
        "D": f"{bound['distortion_nats_per_patch']:.3f}",
        "D in bits": f"{bound['distortion_bits_per_dim']:.3f}",
        "D of grey levels": f"{bound['distortion_grey_level_bits_per_dim']:.3f}",
        "PNG": f"{result['png_bits_per_dim']:.3f}",
        "unigram": f"{unigram:.3f}",
        "a visible patch": f"{visible / (patches - masked):.3f}",
        "a masked patch, unigram": f"{(patches * unigram - visible) / masked:.3f}",
        "a masked patch, untrained": f"{untrained_loss:.3f}",
        "a masked patch, trained": f"{loss:.3f}",
        "guessed": f"{100 * result['accuracy']:.1f} %",
        "gained an image": f"{masked * (untrained_loss - loss):.1f}",
        "below unigram, an image": f"{patches * (unigram - trained):.1f}",
        "uniform": f"{bound['uniform_bound_grey_level_bits_per_dim']:.3f}",
        "trained": f"{total:.3f}",
        "R of the total": f"{100 * bound['trained_rate_bits_per_dim'] / total:.1f} %",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the bound of both stages on the embedded images")
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    parser.add_argument("--tokenizer-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=2000, help="of the masked image model")
    parser.add_argument("--limit", type=int, help="images to learn from, at most")
    parser.add_argument("--runs", type=Path, help="a folder to keep both runs in, and to take finished ones from")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        where = given.runs or Path(scratch)
        found = measure(where, given.tokenizer_steps, given.steps, given.limit, choose_compute("cpu", "fp32"))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print(describe(found["bound"]))
        print("\n".join(f"{name:<28} {value}" for name, value in figures(found).items()))
