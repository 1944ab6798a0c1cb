"""Classes of pixels, from a pretrained backbone: fine-tune on images with masks, and write masks for others.

    python examples/segmentation.py runs/beit street --void 11 --predict ~/Pictures/street --out runs/street

STREET has `images/` and `masks/` in it: for each image a PNG of its name, whose values are the ids of classes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import smalti
from smalti.recipes import tiny
from smalti.runs.segmentation_task import Segmentation


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of smalti pretrain, or a bundle")
    parser.add_argument("data", help="a folder with images/ and masks/; train/, val/ and test/ around them are splits")
    parser.add_argument("--void", type=int, default=255, help="id of pixels that count nowhere")
    parser.add_argument("--predict", help="images to write masks for")
    parser.add_argument("--out", default="runs/segmentation")
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args(arguments)

    backbone, start = smalti.load_network(given.run).backbone.config, tiny.finetune()
    config = replace(
        start,
        task=Segmentation(void=given.void),
        init=given.run,
        data=replace(start.data, path=given.data, side=max(backbone.img_size), channels=backbone.in_chans),
        backbone=replace(backbone, drop_path_rate=0.1),
        plan=replace(start.plan, steps=given.steps, batch_size=16, repeat=True),
        out=given.out,
    )
    result = smalti.finetune(config)
    print(f"test images: mean IoU {result['test_mean_iou']:.1%}, {result['test_pixel_accuracy']:.1%} of the pixels")
    if given.predict:
        written = smalti.predict(smalti.Predict(given.out, given.predict, out=f"{given.out}/masks.csv"))
        print(f"{written['rows']} masks in {given.out}/masks.masks")


if __name__ == "__main__":
    main()
