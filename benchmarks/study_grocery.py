"""Is pretraining worth anything on another domain? Photographs of groceries, with the settings chosen on CIFAR-10.

    python benchmarks/study_grocery.py --grocery FOLDER --tokenizers RUNS

FOLDER holds train/, val/ and test/ of the Grocery Store Dataset (Klasson et al. 2019), a folder for each of its 81
classes; RUNS holds photographs-64 and photographs-64-kmeans-whitened-50 of study_tokenizers.py, which learned from this
train/ without its labels. The best rows, cells and settings are those of study_cifar10.py, and so are network and
tokenizers, but for images of 64 x 64 pixels and patches of 8 x 8. Fine-tuning makes its choices on val/, the probes on
a tenth of train/ for each seed. Results are files of docs/results/grocery/ROW.
"""

from dataclasses import replace

from cells import run
from pretrain_cifar10 import BACKBONE
from study import Row, Study
from study_cifar10 import BEST, MUON, ROWS

STUDY = Study(
    "grocery",
    rows={
        "random": Row(),
        BEST: replace(ROWS[BEST], tokenizer="photographs-64"),
        "muon-visible-kmeans-75": replace(MUON, tokenizer="photographs-64-kmeans-whitened-50"),
    },
    backbone=replace(BACKBONE, img_size=(64, 64), patch_size=8),
    validation="val",
)


def main() -> None:
    """Do the cells that are not finished, and print the table."""
    print(run(STUDY, __doc__).table())


if __name__ == "__main__":
    main()
