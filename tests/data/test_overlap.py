"""What is learned from and what is judged: images that are in both are said, and copies stay on one side of a split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.cli import main as smalti
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.datasets.open import open_source
from smalti.data.duplicates import Overlap, copies, overlap
from smalti.data.load import Data, split_held_out
from smalti.data.splits import hold_out
from tests.small_runs import FEWEST, FINETUNE_FLAGS, pictures, pretrain, train_tokenizer


def numbered(values: list[int]) -> InMemoryDataset:
    """Images, each of which has one value everywhere; equal values are copies."""
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    return InMemoryDataset(pixels, torch.arange(len(values)))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0.05, 0.9), st.integers(0, 5))
def test_copies_are_on_one_side_of_a_split(values: list[int], share: float, seed: int) -> None:
    groups = copies(numbered(values))
    assert groups.tolist() == [values.index(value) for value in values]
    train, aside = hold_out(len(values), share, seed, groups=groups)
    assert sorted([*train, *aside]) == list(range(len(values)))
    assert min(len(train), len(aside)) > 0
    if len(set(values)) > 1:
        assert not {values[place] for place in train} & {values[place] for place in aside}
        largest = max(values.count(value) for value in values)
        assert abs(len(aside) - share * len(values)) <= largest + 1


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 5))
def test_without_copies_the_split_is_as_it_was(count: int, share: float, seed: int) -> None:
    for one, other in zip(
        hold_out(count, share, seed), hold_out(count, share, seed, groups=np.arange(count)), strict=True
    ):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_rows_of_one_image_are_held_out_together(tmp_path: Path, memory: str) -> None:
    photos = pictures(tmp_path / "photos", 8)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "boxes.csv").write_text("path,label\n" + "".join(row * 3 for row in rows))
    data = Data(str(tmp_path / "boxes.csv"), side=16, held_out=0.3, memory=memory, num_workers=0)  # type: ignore[arg-type]
    images = data.open(Log())
    assert len(images.train) + len(images.held_out) == 48
    assert len(images.held_out) % 3 == 0
    learned = images.train if images.train.pixels is not None else images.train.select(np.arange(len(images.train)))
    if learned.pixels is not None:
        assert overlap(learned, images.held_out).shared == 0
    else:
        names = [learned.key(place) for place in range(len(learned))]
        assert all(names.count(name) == 3 for name in names)


def test_images_of_both_are_counted_by_pixels_or_by_files(tmp_path: Path) -> None:
    assert overlap(numbered([1, 2, 3]), numbered([3, 3, 4])) == Overlap(2, 3)
    photos = open_source(str(pictures(tmp_path / "photos", 4)), 3)
    pictures(tmp_path / "test", 6)
    (tmp_path / "test" / "down" / "00.png").write_bytes(b"")
    assert overlap(photos, open_source(str(tmp_path / "test"), 3)) == Overlap(7, 12)
    assert str(Overlap(7, 12)) == "7 of 12 test images are among the training images too, which flatters the result"
    assert str(Overlap(3, 3)).startswith("all 3 test images are")


def test_a_test_on_what_was_learned_is_said_beside_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = pictures(tmp_path / "photos", 16)
    place = ["--data", str(photos), "--plan.steps", "2"]
    for memory in ("resident", "stream"):
        out = tmp_path / memory
        flags = ["--out", str(out), "--test", str(photos), "--data.memory", memory, "--data.num-workers", "0"]
        assert smalti(["finetune", "tiny", *FINETUNE_FLAGS, *place, *flags]) == 0
        found = json.loads((out / "result.json").read_text())["overlap"]
        assert (found["looked_at"], found["shared"]) == (32, 26), "six are held out for choices"
        assert "on 32 test images; 26 of 32 test images are among the training images too" in capsys.readouterr().err
    assert smalti(["evaluate", str(tmp_path / "stream"), str(photos)]) == 0
    assert "warning: all 32 test images are among the training images too" in capsys.readouterr().err
    assert smalti(["evaluate", str(tmp_path / "stream"), str(pictures(tmp_path / "apart", 3, side=20))]) == 0
    assert "among" not in capsys.readouterr().err


def test_evaluate_says_it_of_probes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = pictures(tmp_path / "photos", 16)
    assert train_tokenizer(photos, tmp_path / "tokenizer", 1) == 0
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "beit", 1, "--accept-tokenizer") == 0
    flags = [*FEWEST, "--json"]
    assert smalti(["evaluate", str(tmp_path / "beit"), str(photos), "--test", str(photos), *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "all 32 test images are among the training images too, which flatters the result" in printed
    assert json.loads(printed[-1])["overlap"] == {"shared": 32, "looked_at": 32}


def test_a_split_of_one_image_many_times_is_a_split_all_the_same() -> None:
    parts = split_held_out(numbered([5] * 6), 0.3)
    assert (len(parts.train), len(parts.held_out)) == (4, 2)
