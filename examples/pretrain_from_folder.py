"""Both stages of BEiT on a folder of your own images, from Python.

    python examples/pretrain_from_folder.py ~/Pictures --out runs/mine --steps 2000

It is what `smalti train-tokenizer tiny`, `smalti pretrain tiny` and `smalti report` do: take a recipe, replace what you
want to be different, hand it to the run. `features` uses the trained backbone.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from smalti.core.compute import choose_compute
from smalti.recipes import tiny
from smalti.runs import pretrain, report, train_tokenizer
from smalti.runs.models import load_model


def train(images: Path, out: Path, steps: int) -> None:
    """Tokenizer, backbone and report below `out`."""
    data = replace(tiny.DATA, path=str(images))

    recipe = tiny.train_tokenizer()
    plan = replace(recipe.plan, steps=max(1, steps // 2))
    tokenizer = replace(recipe, data=data, out=str(out / "tokenizer"), plan=plan)
    measured = train_tokenizer.main(tokenizer)
    print(f"tokenizer: PSNR {measured['psnr_db']:.1f} dB, {measured['codebook_usage']:.0%} of the codebook in use")

    start = tiny.pretrain()
    backbone = replace(
        start,
        data=data,
        tokenizer=tokenizer.out,
        out=str(out / "backbone"),
        plan=replace(start.plan, steps=steps),
        masking=replace(start.masking, ratio=0.5),  # the recipe masks 40 %; every field can be replaced like this
    )
    measured = pretrain.main(backbone)
    loss, entropy = measured["loss_nats"], measured["unigram_entropy_nats"]
    print(f"backbone: {loss:.2f} nats per masked patch; guessing by frequency costs {entropy:.2f}")

    report.main(report.Report(runs=(tokenizer.out, backbone.out), out=str(out / "report.html")))


def features(run: Path, images: torch.Tensor) -> torch.Tensor:
    """What the backbone makes of uint8 images, B x 3 x 64 x 64: the mean of its patches, B x 96."""
    backbone = load_model(str(run), choose_compute("cpu", "fp32")).backbone
    return backbone(images).patches.mean(dim=1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/from_folder"), help="where to write (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=2000, help="steps of stage two; stage one gets half (default: 2000)"
    )
    given = parser.parse_args(arguments)
    train(given.images, given.out, given.steps)
    example = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    print(f"features of a black image: {tuple(features(given.out / 'backbone', example).shape)}")


if __name__ == "__main__":
    main()
