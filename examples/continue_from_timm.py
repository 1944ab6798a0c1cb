"""Pretraining that goes on from weights of timm, on your own images, and back into timm.

    smalti train-tokenizer base --data ~/Pictures --out runs/tokenizer
    python examples/continue_from_timm.py vit_small_patch16_224 ~/Pictures --tokenizer runs/tokenizer --out runs/further

timm fetches the weights; smalti opens no connection. The result is a folder for `timm.create_model("local-dir:...")`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
from safetensors.torch import save_model

import smalti
from smalti.recipes import base


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a VisionTransformer or Beit of timm")
    parser.add_argument("images")
    parser.add_argument("--tokenizer", required=True, help="a run of smalti train-tokenizer")
    parser.add_argument("--out", type=Path, default=Path("runs/further"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--drawn", action="store_true", help="leave the weights as timm draws them")
    given = parser.parse_args(arguments)

    given.out.mkdir(parents=True)
    theirs = timm.create_model(given.model, pretrained=not given.drawn, num_classes=0)  # without its head
    save_model(theirs, str(given.out / "timm.safetensors"))
    heads = theirs.blocks[0].attn.num_heads
    imported = smalti.ImportModel((str(given.out / "timm.safetensors"),), str(given.out / "start"), num_heads=heads)
    smalti.import_model(imported)

    backbone = smalti.load_network(imported.out).backbone.config  # sizes, positions, mean and deviation
    start = base.pretrain()
    config = replace(
        start,
        data=replace(start.data, path=given.images, side=max(backbone.img_size)),
        backbone=backbone,
        normalisation=None,  # pixels as the weights know them
        tokenizer=given.tokenizer,
        init_from=imported.out,
        freeze_backbone_steps=given.steps // 10,  # until the new decoder knows something
        plan=replace(start.plan, steps=given.steps, batch_size=32, repeat=True),
        out=str(given.out / "run"),
    )
    result = smalti.pretrain(config)
    print(f"{result['loss_nats']:.2f} nats a masked token; by frequency {result['unigram_entropy_nats']:.2f}")
    smalti.export(smalti.Export(config.out, to="timm", out=str(given.out / "timm")))


if __name__ == "__main__":
    main()
