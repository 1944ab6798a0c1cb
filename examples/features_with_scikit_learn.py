"""Features of a frozen backbone in scikit-learn: a classifier, and groups of images that look alike.

    python examples/features_with_scikit_learn.py runs/beit ~/labelled --out features.npy

Features are computed once, streamed and kept in a file; the same command goes on where it was ended.
"""

import argparse
import csv
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import smalti


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of smalti pretrain or finetune, or a bundle")
    parser.add_argument("data", help="labelled images")
    parser.add_argument("--out", default="features.npy")
    parser.add_argument("--groups", type=int, default=10)
    given = parser.parse_args(arguments)

    written = smalti.embed(smalti.Embed(given.run, given.data, out=given.out, pooling="both"))
    x = np.load(given.out)
    with open(given.out.replace(".npy", ".rows.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    print(f"{len(x)} images, {x.shape[1]} features, block {written['layer']}")

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_score(classifier, x, labels, cv=3)
    print(f"logistic regression: {scores.mean():.1%}, from {scores.min():.1%} to {scores.max():.1%} in three folds")

    groups = KMeans(given.groups, random_state=0).fit_predict(StandardScaler().fit_transform(x))
    for group in range(min(3, given.groups)):
        members = [row["key"] for row, own in zip(rows, groups, strict=True) if own == group]
        print(f"group {group}: {len(members)} images, such as {', '.join(members[:3])}")


if __name__ == "__main__":
    main()
