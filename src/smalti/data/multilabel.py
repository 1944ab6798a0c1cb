"""Images with any number of labels: to a source, `cat|dog` is one class; here it is two labels."""

import torch
from jaxtyping import Float
from torch import Tensor

SEPARATOR = "|"


def label_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Every label that occurs in the names of the classes, sorted."""
    return tuple(sorted({name for text in classes for name in _parts(text)}))


def shown_labels(classes: tuple[str, ...], names: tuple[str, ...]) -> Float[Tensor, "classes names"]:
    """For each class 1 where it has the label, else 0."""
    place = {name: number for number, name in enumerate(names)}
    table = torch.zeros(len(classes), len(names))
    for row, text in enumerate(classes):
        for name in _parts(text):
            table[row, place[name]] = 1
    return table


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]
