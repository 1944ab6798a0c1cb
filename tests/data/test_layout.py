"""How folders are read: splits by name in every verb, lone folders, and what stays a folder of classes."""

import json
from pathlib import Path

import pytest

from smalti.cli import main as smalti
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.concat import ConcatDataset
from smalti.data.datasets.layout import SPLIT_NAMES, read_layout
from smalti.data.datasets.open import open_source
from smalti.data.load import Data, official_splits
from smalti.evaluation.feature_files import open_features
from smalti.runs.check import Check
from smalti.runs.check import main as check
from tests.small_runs import FEWEST, FINETUNE_FLAGS, flat_pictures, picture, pictures, pretrain, train_tokenizer


def split_pictures(root: Path, first: int = 0, **counts: int) -> Path:
    """A folder with splits of so many pictures a class; no picture is in two of them."""
    for name, count in counts.items():
        for across, label in ((True, "across"), (False, "down")):
            (root / name / label).mkdir(parents=True)
            for number in range(first, first + count):
                picture(number, across).save(root / name / label / f"{number:03d}.png")
        first += count
    return root


@pytest.mark.parametrize("name", [*SPLIT_NAMES, "Valid", "TEST", "Testing"])
def test_a_name_of_a_split_is_one_in_any_case(tmp_path: Path, name: str) -> None:
    is_train = SPLIT_NAMES[name.lower()] == "train"
    split_pictures(tmp_path, **{name: 1, "test" if is_train else "Train": 1})
    layout = read_layout(str(tmp_path))
    assert set(layout.splits) == ({"train", "test"} if is_train else {"train", SPLIT_NAMES[name.lower()]})
    assert open_source(str(tmp_path), 3).classes == ("across", "down")


@pytest.mark.parametrize(
    ("folders", "read"),
    [
        (("train", "bus"), {}),
        (("train", "bus", "car"), {}),
        (("cats", "dogs"), {}),
        (("steam train", "test tube"), {"train": "steam train", "test": "test tube"}),
        (("steam train", "test tube", "bus"), {}),
        (("train2017", "val2017"), {"train": "train2017", "validation": "val2017"}),
        (("seg_train", "seg_test"), {"train": "seg_train", "test": "seg_test"}),
        (("train", "test", "unlabeled"), {"train": "train", "test": "test"}),
        (("train", "eval"), {"train": "train", "test": "eval"}),
        (("train", "dev", "Evaluation"), {"train": "train", "validation": "dev", "test": "Evaluation"}),
        (("train",), {"train": "train"}),
        (("test",), {"test": "test"}),
        (("train_images", "train_masks", "test_images"), {}),
    ],
)
def test_which_folders_are_splits(tmp_path: Path, folders: tuple[str, ...], read: dict[str, str]) -> None:
    for name in folders:
        pictures(tmp_path / name, 1)
    layout = read_layout(str(tmp_path))
    assert {split: path.name for split, path in layout.splits.items()} == read
    assert layout.beside == (("unlabeled",) if "unlabeled" in folders else ())
    if not read:
        assert open_source(str(tmp_path), 3).classes == tuple(sorted(folders))


def test_folders_without_images_say_nothing(tmp_path: Path) -> None:
    split_pictures(tmp_path, train=1, test=1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").touch()
    (tmp_path / "valid").mkdir()
    assert set(read_layout(str(tmp_path)).splits) == {"train", "test"}
    assert read_layout(str(tmp_path)).beside == ()


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    split_pictures(tmp_path, train=1, val=1, valid=1)
    with pytest.raises(DataError, match="val and valid are both names of the validation split; keep one"):
        open_source(str(tmp_path), 3)


def test_lone_folders_are_stepped_through_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "flowers" / "flowers", 3)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.txt").touch()
    Data(str(tmp_path), side=16).open(Log())
    source = open_source(str(tmp_path), 3)
    assert (source.classes, source.key(0)) == (("across", "down"), "across/00.png")
    assert f"read is {tmp_path}/flowers/flowers, the only folder with images" in capsys.readouterr().err
    one = flat_pictures(tmp_path / "own" / "class", 2).parent
    assert open_source(str(one), 3).classes == ("class",)


def test_a_lone_folder_around_splits_and_in_them(tmp_path: Path) -> None:
    split_pictures(tmp_path / "archive", train=2, test=1)
    pictures(tmp_path / "archive" / "valid" / "valid", 1)
    source = open_source(str(tmp_path), 3, part="all")
    assert isinstance(source, ConcatDataset)
    assert (source.classes, len(source)) == (("across", "down"), 8)
    assert [source.key(place) for place in (0, 4, 7)] == [
        "train/across/000.png",
        "valid/across/00.png",
        "test/down/002.png",
    ]
    assert source.all_labels().tolist() == [0, 0, 1, 1, 0, 1, 0, 1]
    assert source[7].label == 1


def test_lists_are_splits_where_no_folder_has_images(tmp_path: Path) -> None:
    pictures(tmp_path / "all", 3)
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, lines in (("train", ("across/00.png", "down/00.png")), ("test", ("across/01.png",))):
        rows = "".join(f"../all/{line},{line.split('/')[0]}\n" for line in lines)
        (lists / f"{name}.csv").write_text(f"path,label\n{rows}")
    assert read_layout(str(lists)).test == str(lists / "test.csv")
    assert len(open_source(str(lists), 3)) == 2


def test_nothing_is_learned_where_there_is_only_a_test(tmp_path: Path) -> None:
    split_pictures(tmp_path, test=2)
    with pytest.raises(DataError, match=r"there is only test/; to learn from those all the same, give .*/test"):
        Data(str(tmp_path)).open(Log())
    assert len(Data(str(tmp_path / "test"), side=16).open(Log()).train) == 3


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_validation_images_are_held_out_and_test_images_untouched(tmp_path: Path, memory: str) -> None:
    split_pictures(tmp_path, train=5, valid=3, test=2)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_text("an image that is opened would end the run")
    data = Data(str(tmp_path), side=16, memory=memory, on_bad_image="error", num_workers=0)  # type: ignore[arg-type]
    images = data.open(Log())
    assert (len(images.train), len(images.held_out)) == (10, 6)
    assert images.train.classes == images.held_out.classes == ("across", "down")
    assert sorted(images.held_out.labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_where_there_is_no_test_split_results_are_of_validation(tmp_path: Path) -> None:
    split_pictures(tmp_path, train=2, val=1)
    assert official_splits(str(tmp_path), "") == (str(tmp_path / "train"), str(tmp_path / "val"))
    assert official_splits(str(tmp_path), "elsewhere") == (str(tmp_path / "train"), "elsewhere")
    assert read_layout(str(tmp_path)).selection == ""


def test_check_prints_the_reading_as_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split_pictures(tmp_path, train=5, valid=2, test=3)
    result = check(Check(str(tmp_path)))
    assert (result["images"], result["splits"]) == (20, {"train": 10, "valid": 4, "test": 6})
    assert "read as       3 splits, 2 classes, 20 images; train 10, valid 4, test 6; test/ is kept for the end" in (
        capsys.readouterr().out
    )
    check(Check(str(tmp_path / "train")))
    assert "read as       2 classes, 10 images\n" in capsys.readouterr().out


def test_training_verbs_learn_the_training_split_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = split_pictures(tmp_path / "data", train=16, valid=3, test=4)
    runs = tmp_path / "tokenizer", tmp_path / "beit", tmp_path / "tuned"
    said = "splits: train is learned from, valid is for choices, test is kept for the end"
    assert train_tokenizer(data, runs[0], 2) == 0
    assert pretrain(data, runs[0], runs[1], 2, "--accept-tokenizer") == 0
    flags = ["--data", str(data), "--out", str(runs[2]), "--init", str(runs[1]), "--plan.steps", "2"]
    assert smalti(["finetune", "tiny", *FINETUNE_FLAGS, *flags]) == 0
    assert capsys.readouterr().err.count(said) == 3
    for run in runs:
        assert json.loads((run / "data.json").read_text())["images"] == 32
        assert json.loads((run / "result.json").read_text())["train_images"] == 32
    tuned = json.loads((runs[2] / "result.json").read_text())
    assert (tuned["classes"], tuned["validation_images"], tuned["test_images"]) == (2, 6, 8)
    assert json.loads((runs[0] / "result.json").read_text())["held_out_images"] == 6
    assert smalti(["evaluate", str(runs[1]), str(data), *FEWEST, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])
    assert (found["fit_images"], found["validation_images"], found["test_images"]) == (32, 6, 8)
    assert f"training images from {data}/train, test images from {data}/test" in told.err
    assert "choices are made on 6 validation images" in told.err
    assert smalti(["evaluate", str(runs[2]), str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 8


def test_embed_has_the_images_of_all_splits_and_prepare_those_to_learn(tmp_path: Path) -> None:
    data = split_pictures(tmp_path / "data", train=3, test=2)
    assert smalti(["prepare", str(data), "--out", str(tmp_path / "shards"), "--side", "16"]) == 0
    assert len(open_source(str(tmp_path / "shards"), 3)) == 6
    assert train_tokenizer(data, tmp_path / "tokenizer", 1) == pretrain(
        data, tmp_path / "tokenizer", tmp_path / "beit", 1, "--accept-tokenizer"
    )
    assert smalti(["embed", str(tmp_path / "beit"), str(data), "--out", str(tmp_path / "features.npy")]) == 0
    features = open_features(tmp_path / "features.npy")
    assert (features.count, features.row(9).key, features.row(9).label) == (10, "test/down/004.png", "down")
