"""`smalti split`: lists by class, with groups and copies in one part, which every verb reads."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.cli import main as smalti
from smalti.core.errors import DataError, UsageError
from smalti.data.datasets.open import ReadOptions, open_source
from smalti.data.splits import joined_groups, partition
from smalti.runs.split import Split, main
from tests.small_runs import picture, pictures


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_class_is_divided_and_the_folder_of_lists_is_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = pictures(tmp_path / "photos", 20), tmp_path / "lists"
    flags = ["--test", "0.2", "--validation", "0.1", "--out", str(out), "--json"]
    assert smalti(["split", str(photos), *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["parts"] == {"train": 28, "validation": 4, "test": 8}
    for name, count in (("train", 14), ("validation", 2), ("test", 4)):
        assert Counter(row["label"] for row in rows(out / f"{name}.csv")) == {"across": count, "down": count}
    every = open_source(str(out), 3, part="all")
    assert sorted(every.name(place).rpartition("photos/")[2] for place in range(40)) == sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*.png")
    )
    assert all(every[place].key for place in range(40)), "each can be read"
    assert smalti(["check", str(out)]) == 0
    assert "3 splits, 2 classes, 40 images; train.csv 28, validation.csv 4, test.csv 8; test.csv/ is kept" not in (
        said := capsys.readouterr().out
    )
    assert "3 splits, 2 classes, 40 images; train.csv 28, validation.csv 4, test.csv 8; test.csv is kept" in said


def test_folders_that_a_list_would_read_as_several_labels_are_one_name_with_the_flag_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = pictures(tmp_path / "photos", 10), tmp_path / "lists"
    main(Split(str(photos), str(tmp_path / "plain")))
    assert "label-separator" not in capsys.readouterr().out
    (photos / "across").rename(photos / "hot")
    for name in ("dog", "hot dog"):
        shutil.copytree(photos / "down", photos / name)
        for number, file in enumerate(sorted((photos / name).iterdir())):
            file.write_bytes(file.read_bytes() + bytes([number, len(name)]))  # no copies, which stay together
    main(Split(str(photos), str(out)))
    assert capsys.readouterr().out.endswith(f"--data {out} --out RUN --data.label-separator none\n")
    as_one = ReadOptions(label_separator="none")
    assert open_source(str(out), 3, options=as_one).classes == ("dog", "down", "hot", "hot dog")


def test_it_is_the_same_for_the_same_seed_wherever_it_is_written(tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", 10)
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        main(Split(str(photos), str(tmp_path / name), seed=seed))
    one, two, other = ((tmp_path / name / "test.csv").read_text() for name in ("one", "two", "other"))
    assert one == two != other
    with pytest.raises(UsageError, match=r"train\.csv exists already"):
        main(Split(str(photos), str(tmp_path / "one")))


def test_groups_and_copies_stay_together(tmp_path: Path) -> None:
    for number in range(30):
        picture(number % 25, across=True).save(tmp_path / f"{number:02d}.png")
    lines = [f"{number:02d}.png,{'ab'[number % 2]},patient {number // 3}" for number in range(30)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,patient", *lines]) + "\n")
    result = main(Split(str(tmp_path / "list.csv"), str(tmp_path / "out"), group="patient"))
    assert (result["copies"], sum(result["parts"].values())) == (5, 30)
    assert result["groups"] < 10, "copies join patients"
    parts = [
        [int(Path(row["path"]).stem) for row in rows(tmp_path / "out" / f"{name}.csv")] for name in result["parts"]
    ]
    patients = [{number // 3 for number in part} for part in parts]
    contents = [{number % 25 for number in part} for part in parts]
    assert not patients[0] & patients[1]
    assert not contents[0] & contents[1]
    with pytest.raises(DataError, match=r"no column pateint; did you mean 'patient'|has no column pateint"):
        main(Split(str(tmp_path / "list.csv"), str(tmp_path / "wrong"), group="pateint"))
    with pytest.raises(DataError, match="no column patient; DATA of the kind folder has no columns"):
        main(Split(str(tmp_path), str(tmp_path / "folder"), group="patient"))


def test_one_group_cannot_be_divided(tmp_path: Path) -> None:
    for number in range(4):
        picture(1, across=True).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="no images for test; 1 groups of images that stay together are too few"):
        main(Split(str(tmp_path), str(tmp_path / "out")))


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 60)), min_size=1, max_size=200),
    st.floats(0.1, 0.5),
    st.integers(0, 9),
)
def test_parts_have_their_share_of_every_class_up_to_a_group(
    images: list[tuple[int, int]], share: float, seed: int
) -> None:
    labels = np.array([label for label, _ in images])
    lots = np.arange(len(images), dtype=np.uint64)
    alone = partition(labels, np.arange(len(images)), lots, {"train": 1 - share, "test": share}, seed)
    for label in np.unique(labels):
        assert abs((alone[labels == label] == 1).sum() - share * (labels == label).sum()) <= 1
    groups = joined_groups([group for _, group in images])
    part = partition(labels, groups, lots, {"train": 1 - share, "test": share}, seed)
    assert all(len(np.unique(part[groups == group])) == 1 for group in np.unique(groups))


def test_keys_of_several_kinds_join_groups() -> None:
    assert joined_groups("aabcd", [1, 2, 2, None, None]).tolist() == [0, 0, 0, 3, 4]
