"""Is pretraining worth anything? CIFAR-10, one small ViT, several targets and masks, measured in the same way.

    python benchmarks/study_cifar10.py --cifar10 FOLDER --tokenizers RUNS

FOLDER holds train/ and test/, RUNS the run folders of study_tokenizers.py. A row is a way of pretraining, or none; its
cells are the pretraining, the probes of frozen features, and fine-tuning with 1 %, 10 % and all labels. Every
pretraining sees the same number of images, every fine-tuning takes the same steps with the same recipe.
Cells that were cut off go on where they stopped; finished ones are left alone: each is a file of
docs/results/cifar10/ROW. Choices (layer, regularisation, checkpoint, best row) are made on images held out of train/.
"""

import math
import statistics
from dataclasses import replace

from cells import run
from pretrain_cifar10 import BACKBONE
from results import Results
from study import IMAGES, Row, Study

from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention
from smalti.training.targets import Pixels, Tokens

_RANDOM = Random(ratio=0.4)
MUON = Row(
    Tokens(),
    Random(ratio=0.75),
    "kmeans-1024-whitened-50",
    decoder=CrossAttention(),
    lr=6e-3,
    matrices="muon",
    pos_amplitude=1.0,
)
"""The best setting of ablations_cifar10.py."""
ROWS = {
    "random": Row(),
    "random-no-layer-decay": Row(layer_decay=1.0),
    "dvae-blockwise": Row(Tokens(), tokenizer="dvae-1024"),
    "dvae-random": Row(Tokens(), _RANDOM, "dvae-1024"),
    "pixels-blockwise": Row(Pixels()),
    "pixels-random": Row(Pixels(), _RANDOM),
    "vq-blockwise": Row(Tokens(), tokenizer="vq-1024"),
    "kmeans-blockwise": Row(Tokens(), tokenizer="kmeans-1024"),
    "dvae-hidden-60": Row(Tokens(), Random(ratio=0.6), "dvae-1024"),
    "dvae-hidden-75": Row(Tokens(), Random(ratio=0.75), "dvae-1024"),
    "pixels-hidden-60": Row(Pixels(), Random(ratio=0.6)),
    "visible-kmeans-75": Row(Tokens(), Random(ratio=0.75), "kmeans-1024", decoder=CrossAttention()),
    "muon-visible-kmeans-75": MUON,
    "visible-dvae-75": Row(Tokens(), Random(ratio=0.75), "dvae-1024", decoder=CrossAttention()),
    "visible-pixels-75": Row(Pixels(), Random(ratio=0.75), decoder=CrossAttention()),
    "dvae-hidden-60-1200000": Row(Tokens(), Random(ratio=0.6), "dvae-1024", images=1_200_000),
}
BUDGETS = (37_500, 75_000, 150_000, 300_000, 600_000)
"""Images of the learning curve of the best row, each a pretraining of its own. It is fine-tuned with 10 % alone."""
BEST = "dvae-random"
"""What `Results.chosen` says of the rows that have ended. It has the learning curve, and is tried on other images."""
ROWS |= {f"{BEST}-{images}": replace(ROWS[BEST], images=images) for images in BUDGETS if images != IMAGES}

STUDY = Study("cifar10", ROWS, BACKBONE, curve=BEST)


def slopes(results: Results) -> dict[str, float]:
    """Points of accuracy for each doubling of the images of the learning curve, by least squares."""
    return {
        name: statistics.linear_regression([math.log2(images) for images in line], list(line.values())).slope
        for name, line in results.by_images().items()
    }


def main() -> None:
    """Do the cells that are not finished, and print the table."""
    results = run(STUDY, __doc__)
    print(results.table(), slopes(results), sep="\n\n")


if __name__ == "__main__":
    main()
