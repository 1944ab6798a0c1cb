"""What pretraining is worth where labels are few: the same fine-tuning from a pretrained backbone and from a drawn one.

    python examples/few_labels.py runs/beit ~/labelled --labels 1 5 25 --out runs/few

It prints a line for each number of labels a class. Test images are looked at once, in each run, at its end.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import smalti
from smalti.recipes import tiny


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of smalti pretrain, or a bundle")
    parser.add_argument("data", help="labelled images: a folder a class, a list, a folder with train/ and test/")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 5, 25], help="labels of each class")
    parser.add_argument("--out", type=Path, default=Path("runs/few-labels"))
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args(arguments)

    backbone = smalti.load_network(given.run).backbone.config
    start = tiny.finetune()
    common = replace(
        start,
        data=replace(start.data, path=given.data, side=max(backbone.img_size), channels=backbone.in_chans),
        backbone=replace(backbone, drop_path_rate=0.1),
        plan=replace(start.plan, steps=given.steps, repeat=True),  # fewer images than a batch has rows
    )
    lines = []
    for labels in given.labels:
        scores = []
        for name, init in (("pretrained", given.run), ("drawn", "")):
            config = replace(common, labels_per_class=labels, init=init, out=str(given.out / f"{name}-{labels}"))
            scores.append(100 * smalti.finetune(config)["test_accuracy"])
        lines.append(f"{labels:>4} a class: pretrained {scores[0]:.1f} %, drawn {scores[1]:.1f} %")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
