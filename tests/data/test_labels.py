"""Labels are class numbers where they are a dense range, and names where not, whatever holds them."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.labels import Labels, label_names, shown_labels
from smalti.data.datasets.open import open_source
from tests.data.tables import png, save_to_disk, write
from tests.data.test_shards import put

pa = pytest.importorskip("pyarrow")

CASES = {
    "ids": (["10023", "90210", "10023", "55"], ("55", "10023", "90210")),
    "dates": (["20240101", "20231231", "20240101", "20240102"], ("20231231", "20240101", "20240102")),
    "nine digits": (["999999999", "0", "1", "0"], ("0", "1", "999999999")),
    "twelve digits": (["123456789012", "1", "1", "0"], ("0", "1", "123456789012")),
    "leading zeros": (["01", "1", "01", "2"], ("01", "1", "2")),
    "digits of other scripts": (["\u0663", "3", "\u0661", "3"], ("3", "\u0661", "\u0663")),
    "superscripts": (["\u00b2", "2", "2", "\u00b2"], ("2", "\u00b2")),
    "signs": (["+1", "1", "2", "0"], ("+1", "0", "1", "2")),
    "a range": (["3", "0", "1", "0"], ("0", "1", "2", "3")),
    "no range": (["0", "9", "0", "9"], ("0", "9")),
    "one and minus one": (["1", "-1", "1", "-1"], ("-1", "1")),
}


def text(root: Path, labels: list[str]) -> str:
    return listed(root, "list.txt", [f"{n}.png {label}" for n, label in enumerate(labels)])


def table(root: Path, labels: list[str]) -> str:
    return listed(root, "list.csv", ["path,label", *(f"{n}.png,{label}" for n, label in enumerate(labels))])


def tar(root: Path, labels: list[str]) -> str:
    pairs = [((f"{n}.png", png(n)), (f"{n}.cls", label.encode())) for n, label in enumerate(labels)]
    return str(put(root / "a.tar", *[member for pair in pairs for member in pair]))


def arrow_table(labels: list[str]) -> Any:
    whole = all(label.lstrip("-").isascii() and label.isdecimal() and label == str(int(label)) for label in labels)
    column = pa.array([int(label) for label in labels]) if whole else pa.array(labels)
    return pa.table({"image": pa.array([png(n) for n in range(len(labels))]), "label": column})


def parquet(root: Path, labels: list[str]) -> str:
    return str(write(root / "a.parquet", arrow_table(labels)))


def arrow(root: Path, labels: list[str]) -> str:
    save_to_disk(root / "set", arrow_table(labels))
    return str(root / "set")


def listed(root: Path, name: str, lines: list[str]) -> str:
    for number in range(len(lines)):
        (root / f"{number}.png").write_bytes(png(number))
    (root / name).write_text("\n".join(lines) + "\n")
    return str(root / name)


def names_of(source: ImageDataset) -> list[str]:
    return [source.classes[number] if number >= 0 else "" for number in source.all_labels().tolist()]


@pytest.mark.parametrize("written", [text, table, tar, parquet, arrow])
@pytest.mark.parametrize("case", CASES)
def test_i13_labels_that_are_no_dense_range_are_names(
    tmp_path: Path, case: str, written: Callable[[Path, list[str]], str]
) -> None:
    labels, classes = CASES[case]
    source = open_source(written(tmp_path, labels), 1)
    assert (source.classes, names_of(source)) == (classes, labels)


def test_i13_no_time_and_no_memory_by_the_value_of_a_label() -> None:
    labels, began = Labels(), time.process_time()
    tracemalloc.start()
    for label in ("9" * 100_000, "999999999", "1", "0"):
        labels.add(label)
    assert len(labels.build().names) == 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert time.process_time() - began < 1


def built(given: list[str], separator: str = "auto") -> tuple[list[str], tuple[str, ...]]:
    labels = Labels()
    for label in given:
        labels.add(label)
    numbers, names, notes = labels.build(separator)
    return [names[number] for number in numbers.tolist()], notes


@pytest.mark.parametrize(
    ("given", "found", "word"),
    [
        (["rust", "scab rust", "scab"], ["rust", "rust|scab", "scab"], "space"),
        (["rust", "scab, rust", "scab", "rust,scab"], ["rust", "rust|scab", "scab", "rust|scab"], "comma"),
        (["a", "a;b", "b; a"], ["a", "a;b", "b; a"], ""),
        (["a", "b", "a;b"], ["a", "b", "a|b"], "semicolon"),
        (["0 16", "3", "7 1 2"], ["0|16", "3", "1|2|7"], "space"),
        (["golden retriever", "labrador retriever", "pug"], ["golden retriever", "labrador retriever", "pug"], ""),
        (["Doe, John", "Roe, Jane"], ["Doe, John", "Roe, Jane"], ""),
        (["1,234", "5,678"], ["1,234", "5,678"], ""),
    ],
)
def test_i14_the_separator_of_several_labels_is_guessed_where_that_is_safe(
    given: list[str], found: list[str], word: str
) -> None:
    labels, notes = built(given)
    assert labels == found
    assert (f"separated by {word}; --data.label-separator none" in "".join(notes)) == bool(word)


def test_i14_the_separator_can_be_said() -> None:
    assert built(["a b", "b", "a"], "none") == (["a b", "b", "a"], ())
    assert built(["x y", "z"], "space") == (["x|y", "z"], ())
    assert built(["x/y", "/"], "/") == (["x|y", "|"], ())


def test_i14_labels_that_are_not_known_are_nan() -> None:
    classes = ("a|?b", "|", "c")
    names = label_names(classes)
    assert names == ("a", "b", "c")
    shown = shown_labels(classes, names)
    assert torch.equal(shown.nan_to_num(9), torch.tensor([[1.0, 9, 0], [0, 0, 0], [0, 0, 1]]))


def test_some_images_without_a_label(tmp_path: Path) -> None:
    source = open_source(listed(tmp_path, "a.csv", ["path,label", "0.png,cat", "1.png,", "2.png,-1", "3.png,dog"]), 1)
    assert names_of(source) == ["cat", "", "", "dog"]
    assert source.notes == ("2 of 4 images have no label, and are left out where labels are used",)
    kept = source.labelled()
    assert ([kept.key(n) for n in range(len(kept))], kept.present_classes()) == (["0.png", "3.png"], ("cat", "dog"))
