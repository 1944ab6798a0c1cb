"""`smalti predict`: what it writes is what evaluation counts, whatever kills it, however many processes compute it."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from smalti.cli import main as smalti
from smalti.core.errors import DataError
from smalti.evaluation import feature_blocks
from smalti.functional.metrics import average_precision, mean_iou, pixel_confusion
from smalti.runs.predict import Predict, main
from tests.data.tables import table, write
from tests.distributed.started import started
from tests.faults.kills import Nursery
from tests.small_runs import (
    CPU,
    DYING,
    finetune,
    flat_pictures,
    newest_checkpoint,
    picture,
    pictures,
    pretrain,
    result,
    scenes,
    segment,
)

SEVERAL = ("across", "across|red", "down", "down|red", "|")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of classes, of several labels and of pixels; the images that each was tested on."""
    folder = tmp_path_factory.mktemp("predict")
    pictures(folder / "test", per_class=9)
    # views larger than the network's images: evaluation resizes twice
    flags = ("--test", str(folder / "test"), "--data.side", "20")
    assert finetune(pictures(folder / "photos"), "", folder / "run", 4, *flags) == 0
    for part in ("labelled", "labelled-test"):
        for number in range(20):
            place = folder / part / SEVERAL[number % 5]
            place.mkdir(parents=True, exist_ok=True)
            picture(number, across=number % 2 == 0).save(place / f"{number:02d}.png")
    apart = ("--test", str(folder / "labelled-test"))
    assert finetune(folder / "labelled", "", folder / "several", 4, "--task.multi-label", *apart) == 0
    boxes = ("--test", str(scenes(folder / "boxes", 11, seed=3)), "--task.window", "0.6")
    assert segment(scenes(folder / "scenes"), "", folder / "pixels", 4, *boxes) == 0
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 images."""
    monkeypatch.setattr(feature_blocks, "BLOCK", 8)


def config(root: Path, run: str, images: str, out: Path, **given: Any) -> Predict:
    settings: dict[str, Any] = {"batch_size": 3, "num_workers": 0, "device": "cpu", "precision": "fp32"}
    return Predict(str(root / run), str(root / images), str(out), **(settings | given))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> dict[str, bytes]:
    """Everything that was written beside and with `out`."""
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}


def test_classes_are_those_that_evaluation_counts(root: Path, tmp_path: Path) -> None:
    found = main(config(root, "run", "test", tmp_path / "p.csv", every_class=True))
    rows, judged = rows_of(tmp_path / "p.csv"), result(root / "run")
    right = [row["predicted"] == row["label"] for row in rows]
    assert sum(right) / len(rows) == judged["test_accuracy"]
    nats = [-math.log(float(row[f"p_{row['label']}"])) for row in rows]
    assert sum(nats) / len(rows) == pytest.approx(judged["test_nats"], abs=1e-5)
    table = [[0, 0], [0, 0]]
    for row in rows:
        table[("across", "down").index(row["label"])][("across", "down").index(row["predicted"])] += 1
    assert table == judged["test_confusion"]
    keys = [f"{name}/{number:02d}.png" for name in ("across", "down") for number in range(9)]
    assert [row["key"] for row in rows] == keys
    counts = {name: sum(row["predicted"] == name for row in rows) for name in ("across", "down")}
    told = {"out": str(tmp_path / "p.csv"), "images": 18, "rows": 18, "unreadable": 0, "classes": 2}
    assert found | {"seconds": 0} == told | {"predicted": counts, "seconds": 0}


def test_a_checkpoint_has_the_classes_of_its_run(root: Path, tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(root / "run")
    found = main(config(root, str(checkpoint), "test", tmp_path / "p.csv"))
    assert set(found["predicted"]) == {"across", "down"}


def test_the_most_likely_classes_come_first_and_all_add_up_to_one(root: Path, tmp_path: Path) -> None:
    main(config(root, "run", "test", tmp_path / "p.csv", every_class=True))
    main(config(root, "run", "test", tmp_path / "one.csv", top=1))
    for row, short in zip(rows_of(tmp_path / "p.csv"), rows_of(tmp_path / "one.csv"), strict=True):
        shares = {name: float(row[f"p_{name}"]) for name in ("across", "down")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        order = sorted(shares, key=lambda name: -shares[name])
        assert [row["predicted"], row["predicted_2"]] == order
        assert [row["probability"], row["probability_2"]] == [row[f"p_{name}"] for name in order]
        assert {name: row[name] for name in short} == short
        assert list(short) == ["position", "key", "label", "predicted", "probability"]


def test_parquet_has_the_same_columns(root: Path, tmp_path: Path) -> None:
    for run, images in (("run", "test"), ("several", "labelled-test"), ("pixels", "boxes")):
        for kind in ("csv", "parquet"):
            main(config(root, run, images, tmp_path / run / f"{kind}.{kind}", every_class=run != "pixels"))
        lines = rows_of(tmp_path / run / "csv.csv")
        table = pq.read_table(tmp_path / run / "parquet.parquet")
        assert table.column_names == list(lines[0])
        for name in table.column_names:
            for there, written in zip(table[name].to_pylist(), (line[name] for line in lines), strict=True):
                if isinstance(there, float):
                    assert float(written) == pytest.approx(there, rel=1e-5)
                elif name != "mask":
                    assert written == ("" if there is None else str(there))


def test_images_without_labels_are_welcome(root: Path, tmp_path: Path) -> None:
    flat_pictures(tmp_path / "flat", 5)
    found = main(config(root, "run", str(tmp_path / "flat"), tmp_path / "p.parquet"))
    table = pq.read_table(tmp_path / "p.parquet")
    assert (found["rows"], table["label"].to_pylist()) == (5, [None] * 5)
    assert table["key"].to_pylist() == [f"{number:02d}.png" for number in range(5)]


def test_several_labels_are_those_over_the_threshold(root: Path, tmp_path: Path) -> None:
    main(config(root, "several", "labelled-test", tmp_path / "p.csv", threshold=0.45, every_class=True))
    rows, names = rows_of(tmp_path / "p.csv"), ("across", "down", "red")
    for row in rows:
        over = sorted((name for name in names if float(row[f"p_{name}"]) >= 0.45), key=lambda n: -float(row[f"p_{n}"]))
        assert row["predicted"] == "|".join(over)
        assert row["probability"] == "|".join(row[f"p_{name}"] for name in over)
    judged = result(root / "several")["test_average_precision"]
    for name in names:
        scores = torch.tensor([float(row[f"p_{name}"]) for row in rows])
        has = torch.tensor([name in row["label"].split("|") for row in rows])
        assert float(average_precision(scores, has)) == pytest.approx(judged[name], abs=1e-6)


@pytest.mark.parametrize("images", ["boxes", "boxes/images"])
def test_masks_are_those_that_evaluation_counts(images: str, root: Path, tmp_path: Path) -> None:
    found = main(config(root, "pixels", images, tmp_path / "p.csv"))
    rows, table = rows_of(tmp_path / "p.csv"), torch.zeros(3, 3, dtype=torch.long)
    for row in rows:
        with Image.open(tmp_path / row["mask"]) as mask:
            assert (mask.mode, mask.format, mask.size) == ("P", "PNG", (32, 24))
            ids, palette = np.array(mask), mask.getpalette()
        assert palette is not None
        assert len({tuple(palette[3 * number : 3 * number + 3]) for number in range(3)}) == 3
        truth = np.array(Image.open(root / "boxes" / "masks" / row["key"]))
        guess, wanted = torch.from_numpy(ids), torch.from_numpy(np.where(truth == 11, 255, truth).astype(np.uint8))
        table += pixel_confusion(guess, wanted, 3)
        shares = [float(row[f"share_{number}"]) for number in range(3)]
        assert shares == pytest.approx([(ids == number).mean() for number in range(3)], abs=1e-5)
    assert mean_iou(table) == result(root / "pixels")["test_mean_iou"]
    assert [row["mask"] for row in rows] == [f"p.masks/{row['key']}" for row in rows]
    assert found["masks"] == str(tmp_path / "p.masks")
    assert sum(found["pixel_share"].values()) == pytest.approx(1)


def test_ids_of_masks_are_those_that_the_network_learned_from(root: Path, tmp_path: Path) -> None:
    """Void is 0 there, so the first class has the id 1."""
    learned = scenes(tmp_path / "scenes")
    for path in (learned / "masks").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 11, 0, ids + 1).astype(np.uint8)).save(path)
    assert finetune(learned, "", tmp_path / "run", 2, "--task", "segmentation", "--task.void", "0") == 0
    main(Predict(str(tmp_path / "run"), str(learned), str(tmp_path / "p.csv"), device="cpu", precision="fp32"))
    written = {number for path in (tmp_path / "p.masks").iterdir() for number in np.unique(np.array(Image.open(path)))}
    assert written <= {1, 2, 3}


def test_images_with_one_name_have_a_mask_each(root: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        picture(1, across=True).save(tmp_path / "flat" / name)
    main(config(root, "pixels", str(tmp_path / "flat"), tmp_path / "p.csv"))
    assert {path.name for path in (tmp_path / "p.masks").iterdir()} == {"a.png.png", "a.jpg.png", "b.png"}
    picture(1, across=True).save(tmp_path / "flat" / "a.jpg.tif")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.jpg\.tif would have one mask; both are .*/a\.jpg\.png"):
        main(config(root, "pixels", str(tmp_path / "flat"), tmp_path / "other.csv"))


def test_cells_of_tables_and_pages_have_a_mask_each(root: Path, tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    write(tmp_path / "table" / "data.parquet", table(range(3)))
    first, *others = (picture(number, across=True) for number in range(2))
    first.save(tmp_path / "stacks" / "a.tif", save_all=True, append_images=others)
    for name, data, keys, more in (
        ("cells", tmp_path / "table", [f"data.parquet:{row}" for row in range(3)], {}),
        ("pages", tmp_path / "stacks", ["a.tif#0", "a.tif#1"], {"pages": "all"}),
    ):
        found = main(config(root, "pixels", str(data), tmp_path / f"{name}.csv", **more))
        assert found["rows"] == len(keys)
        assert {path.name for path in (tmp_path / f"{name}.masks").iterdir()} == {f"{key}.png" for key in keys}


def test_masks_of_another_time_are_not_overwritten(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.masks").mkdir()
    (tmp_path / "p.masks" / "00.png").write_bytes(b"mine")
    command = ["predict", str(root / "pixels"), str(root / "boxes"), "--out", str(tmp_path / "p.csv"), *CPU]
    assert smalti(command) == 2
    assert "p.masks is not empty; masks are written there; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "p.masks" / "00.png").read_bytes() == b"mine"


@pytest.mark.parametrize(("run", "images"), [("run", "photos"), ("pixels", "scenes")])
def test_unreadable_images_are_left_out_and_listed(
    run: str, images: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = pictures if run == "run" else scenes
    broken = sorted(make(tmp_path / images).rglob("*.png"))[3:5]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    found = main(config(root, run, str(tmp_path / images), tmp_path / "p.csv", max_bad_fraction=0.5))
    assert found["unreadable"] == 2
    assert not {"3", "4"} & {row["position"] for row in rows_of(tmp_path / "p.csv")}
    listed = map(json.loads, (tmp_path / "p.bad_files.jsonl").read_text().splitlines())
    assert [item["path"] for item in listed] == list(map(str, broken))
    said = capsys.readouterr().err
    assert re.search(r"^predictions +(\d+)/\1 .* 2 unreadable$", said, re.MULTILINE), "while they are counted"
    assert f"images cannot be read, first {broken[0]} (" in said
    assert f"; listed in {tmp_path / 'p.bad_files.jsonl'}\n" in said
    with pytest.raises(DataError, match="raise --max-bad-fraction"):
        main(config(root, run, str(tmp_path / images), tmp_path / "q.csv"))


KILLED = (
    DYING
    + """
import os, signal, sys
import torch
from smalti.cli import main
from smalti.evaluation import feature_blocks, prediction_files

torch.set_num_threads(1)
feature_blocks.BLOCK, place = 8, sys.argv.pop(1)

if place == "before a block":
    feature_blocks.write_bytes = dying(feature_blocks.write_bytes, 1)
elif place == "between two masks":
    from smalti.runs import predict
    predict.write_bytes = dying(predict.write_bytes, 10)
elif place == "before the file":
    prediction_files.write_file = dying(prediction_files.write_file, 0)
sys.exit(main(sys.argv[1:]))
"""
)


@pytest.mark.parametrize(
    ("run", "images", "place"),
    [
        ("run", "photos", "before a block"),
        ("run", "photos", "before the file"),
        ("pixels", "boxes", "between two masks"),
    ],
)
@pytest.mark.processes
def test_killed_it_goes_on_to_the_same_files(
    run: str, images: str, place: str, root: Path, tmp_path: Path, small_blocks: None, one: Nursery
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "killed" / "p.csv"
    command = ["predict", str(root / run), str(root / images), *CPU, "--num-workers", "0", "--batch-size", "3"]
    assert one.killed_itself(KILLED, place, *command, "--out", str(out)), one.told()
    assert list((tmp_path / "killed" / "p.csv.parts").glob("*.safetensors"))
    assert not out.exists()
    torch.set_num_threads(1)
    try:
        main(config(root, run, images, out))
        main(config(root, run, images, tmp_path / "whole" / "p.csv"))
    finally:
        torch.set_num_threads(threads)
    there, whole = files(out), files(tmp_path / "whole" / "p.csv")
    about = {name: json.loads(found.pop("p.about.json")) for name, found in (("there", there), ("whole", whole))}
    assert there == whole
    assert about["there"] | {"masks": ""} == about["whole"] | {"masks": ""}


def test_what_is_done_is_left_alone_and_something_else_is_not_overwritten(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(root, "run", "test", tmp_path / "p.csv")
    first = main(given)
    before = files(tmp_path / "p.csv")
    assert main(given) | {"seconds": 0} == first | {"seconds": 0}
    command = ["predict", str(root / "run"), str(root / "test"), *CPU, "--batch-size", "3"]
    assert smalti([*command, "--out", str(tmp_path / "p.csv"), "--top", "1"]) == 2
    assert "p.csv has other predictions; top was 5, and is 1; choose another --out" in capsys.readouterr().err
    assert files(tmp_path / "p.csv") == before
    (tmp_path / "q.csv").write_text("mine")
    assert smalti([*command, "--out", str(tmp_path / "q.csv")]) == 3
    assert "q.csv is there, and no file of smalti predict" in capsys.readouterr().err
    assert (tmp_path / "q.csv").read_text() == "mine"


@pytest.mark.parametrize(("run", "images"), [("run", "many"), pytest.param("pixels", "many", marks=pytest.mark.slow)])
@pytest.mark.processes
def test_two_ranks_write_the_same_files(run: str, images: str, root: Path, tmp_path: Path) -> None:
    """Two blocks, one of each rank."""
    (tmp_path / "many").mkdir()
    for number in range(1030):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 90)).save(tmp_path / f"many/{number:04d}.png")
    for world in (1, 2):
        out = tmp_path / str(world) / "p.csv"
        command = ["predict", str(root / run), str(tmp_path / images), *CPU, "--num-workers", "0", "--out", str(out)]
        with started(tmp_path, [command] * world) as ranks:
            assert ranks.all_codes() == [0] * world, "".join(map(ranks.text, range(world)))
            assert ranks.unwanted() == ""
            assert "1030 rows" in ranks.text(0)
    one, two = (files(tmp_path / world / "p.csv") for world in ("1", "2"))
    assert {name: one[name] for name in one if name != "p.about.json"} == {
        name: two[name] for name in two if name != "p.about.json"
    }


def test_a_bundle_predicts_what_its_run_predicts(root: Path, tmp_path: Path) -> None:
    assert smalti(["export", str(root / "run"), "--to", "bundle", "--out", str(tmp_path / "bundle")]) == 0
    main(config(root, "run", "test", tmp_path / "run.csv"))
    main(config(root, str(tmp_path / "bundle"), "test", tmp_path / "bundle.csv"))
    assert (tmp_path / "run.csv").read_bytes() == (tmp_path / "bundle.csv").read_bytes()


def test_wrong_settings_are_said_in_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(root / "photos", "", tmp_path / "beit", 2, "--target", "pixels") == 0
    for run, flags, code, text in (
        ("run", ["--out", "p.npy"], 2, "cannot write predictions to 'p.npy'; use a name in .csv or .parquet"),
        ("run", [], 2, "no file to write; use --out predictions.csv or --out predictions.parquet"),
        ("run", ["--out", "p.csv", "--top", "0"], 2, "top is 0; use at least 1"),
        ("run", ["--out", "p.csv", "--threshold", "2"], 2, "threshold is 2.0; choose one in [0, 1]"),
        (
            str(tmp_path / "beit"),
            ["--out", "p.csv"],
            2,
            "is a run of pretrain; it has no classes to predict; fine-tune it",
        ),
    ):
        capsys.readouterr()
        assert smalti(["predict", str(root / run), str(root / "test"), *CPU, *flags]) == code
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert text in line
