"""Images of one group are never on both sides of a split."""

from pathlib import Path

import numpy as np
import pytest
import torch

from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.concat import ConcatDataset
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.groups import group_values, numbered, together
from smalti.data.load import Data
from smalti.evaluation.probe import Split
from smalti.runs.evaluate import Evaluate
from smalti.runs.model_selection import Shares, divide
from smalti.runs.split import Split as SplitVerb
from smalti.runs.split import main as split
from tests.data.tables import png, save_to_disk, write
from tests.small_runs import picture

PATIENTS = 12


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scans of each of twelve patients, and a list that says whose they are."""
    place = tmp_path_factory.mktemp("groups")
    rows = ["path,label,patient"]
    for number in range(4 * PATIENTS):
        name = f"scans/p{number % PATIENTS}/{number}.png"
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, across=number % 2 == 0, side=8).save(place / name)
        rows.append(f"{name},{'ill' if number % 2 else 'well'},{number % PATIENTS}")
    (place / "list.csv").write_text("\n".join(rows) + "\n")
    return place


def patients(data: Data, images: ImageDataset) -> set[int]:
    assert images.groups is not None
    return set(images.groups.tolist())


@pytest.mark.parametrize(
    ("data", "group"), [("list.csv", "patient"), ("list.csv", r"/(p\d+)/"), ("scans", "^([^/]+)/")]
)
def test_held_out_images_are_of_other_groups(data: str, group: str, scans: Path) -> None:
    settings = Data(str(scans / data), side=8, held_out=0.2, group=group)
    images = settings.load(Log())
    learned, judged = patients(settings, images.train), patients(settings, images.held_out)
    assert len(learned | judged) == PATIENTS
    assert not learned & judged
    assert 10 <= len(images.held_out) <= 16
    alone = Data(str(scans / data), side=8, held_out=0.2).load(Log())
    assert alone.train.groups is None
    assert len(alone.held_out) == 10


def test_streamed_images_are_divided_alike(scans: Path) -> None:
    settings = Data(str(scans / "list.csv"), side=8, held_out=0.2, group="patient", memory="stream")
    images = settings.open(Log())
    assert images.train.groups is not None
    assert images.held_out.groups is not None
    assert not set(images.train.groups.tolist()) & set(images.held_out.groups.tolist())


def test_of_a_large_group_a_limited_number_is_kept_in_memory(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.data.load._MAX_HELD_OUT", 3)
    settings = Data(str(scans / "list.csv"), side=8, held_out=0.2, group=r"p(\d)", memory="stream")
    images = settings.open(Log())
    assert images.train.groups is not None
    assert images.held_out.groups is not None
    assert len(images.held_out) == 3
    assert not set(images.train.groups.tolist()) & set(images.held_out.groups.tolist())


def test_validation_images_of_finetune_and_of_probes_are_of_other_groups(scans: Path) -> None:
    settings = Data(str(scans / "list.csv"), side=8, held_out=0.2, group="patient")
    parts = divide(settings.load(Log()), settings, "", Shares(0.2, 1.0, None, 0), Log())
    sides = [patients(settings, part) for part in (parts.train.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == PATIENTS
    assert parts.train.train.groups is not None
    chosen = Split.of_groups(parts.train.train.groups, 0.2, 0)
    fit, checked = (set(parts.train.train.groups[side.numpy()].tolist()) for side in (chosen.fit, chosen.validation))
    assert fit
    assert checked
    assert not fit & checked


def test_evaluate_takes_the_groups_of_the_model_for_its_own_images(scans: Path) -> None:
    trained_on = Data(str(scans / "list.csv"), group="patient")
    assert Evaluate("run", str(scans / "list.csv")).reading(trained_on).group == "patient"
    assert Evaluate("run", str(scans / "scans")).reading(trained_on).group == ""
    assert Evaluate("run", str(scans / "scans"), group="(p)").reading(trained_on).group == "(p)"


def test_copies_and_groups_are_joined() -> None:
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    pixels[5] = pixels[0]
    images = InMemoryDataset(pixels, torch.zeros(6, dtype=torch.int64), (), np.array([0, 0, 1, 1, 2, 3]))
    same = together(images)
    assert same[0] == same[1] == same[5]
    assert len(set(same.tolist())) == 3
    assert len(set(together(InMemoryDataset(pixels, torch.zeros(6, dtype=torch.int64))).tolist())) == 5


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("pateint", "no column pateint; did you mean 'patient'"),
        (r"(q\d+)", r"no groups by '\(q.*'; none of 48 paths fits, first 'scans/p0/0.png'"),
        ("(scans)", "all 48 images are of one group, so none can be held out"),
    ],
)
def test_what_gives_no_groups_is_said(group: str, message: str, scans: Path) -> None:
    with pytest.raises(DataError, match=message):
        Data(str(scans / "list.csv"), side=8, group=group).load(Log())


@pytest.mark.parametrize("group", ["(", "(?:a)", "(?P<x"])
def test_a_regular_expression_that_is_none_is_refused(group: str) -> None:
    with pytest.raises(UsageError, match=r"is no regular expression|no parentheses that capture"):
        Data("x", group=group)


def test_a_folder_has_no_columns_and_an_empty_cell_is_no_group(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column patient; DATA of the kind folder has no columns"):
        Data(str(scans / "scans"), side=8, group="patient").load(Log())
    rows = ["path,patient", *(f"{scans}/scans/p{n}/{n}.png,{'a' if n < 2 else ''}" for n in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    source = Data(str(tmp_path / "list.csv")).source(str(tmp_path / "list.csv"))
    assert group_values(source, "patient") == ["a", "a", None, None]
    assert group_values(source.select(np.array([3, 1])), "patient") == [None, "a"]
    assert group_values(ConcatDataset({"train": source, "test": source}), "patient") == ["a", "a", None, None] * 2
    assert len(np.unique(numbered(source, "patient"))) == 3


def test_columns_of_tables(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = pa.table({"image": [png(n) for n in range(6)], "place": pa.array([1, 1, None, 2, 2, 2])})
    write(tmp_path / "0.parquet", rows, 2)
    save_to_disk(tmp_path / "set", rows)
    for data in ("0.parquet", "set"):
        source = Data(str(tmp_path / data)).source(str(tmp_path / data))
        assert source.column("place") == ["1", "1", None, "2", "2", "2"]
        with pytest.raises(DataError, match="has no column plaec of names or numbers; did you mean 'place'"):
            source.column("plaec")
        with pytest.raises(DataError, match="has no column image of names"):
            source.column("image")


def test_lists_of_split_keep_groups_by_path_together(scans: Path, tmp_path: Path) -> None:
    split(SplitVerb(str(scans / "list.csv"), out=str(tmp_path / "lists"), test=0.25, group=r"/(p\d+)/"))
    sides = [
        {line.split("/scans/")[1].split("/")[0] for line in (tmp_path / "lists" / name).read_text().splitlines()[1:]}
        for name in ("train.csv", "test.csv")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == PATIENTS


def test_a_training_set_keeps_its_groups_when_chosen_from() -> None:
    images = InMemoryDataset(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, -1, 1, 0]), ("a", "b"))
    images.groups = np.array([5, 6, 7, 5])
    for chosen, groups in ((images.labelled(), [5, 7, 5]), (images.select(np.array([3, 1])), [5, 6])):
        assert chosen.groups is not None
        assert chosen.groups.tolist() == groups
