"""`smalti embed`: rows are those of evaluation, whatever kills it, however many processes compute them."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.cli import main as smalti
from smalti.core.compute import Compute
from smalti.core.errors import CheckpointError, DataError, LockError, UsageError
from smalti.core.folder_lock import writer_lock
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, InMemoryDataset
from smalti.data.datasets.open import open_source
from smalti.data.load import Data, read_source
from smalti.data.reading import read_square
from smalti.evaluation import feature_blocks
from smalti.evaluation.features import extract
from smalti.runs import embed
from smalti.runs.embed import Embed, main
from smalti.runs.network import load_network
from tests.distributed.started import started
from tests.faults.kills import Nursery
from tests.small_runs import CPU, DYING, finetune, flat_pictures, pictures

ONE = Compute(torch.device("cpu"), torch.float32)
KINDS = ("npy", "parquet")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 images."""
    monkeypatch.setattr(feature_blocks, "BLOCK", 8)


def config(runs: Path, out: Path, **given: Any) -> Embed:
    settings: dict[str, Any] = {"batch_size": 3, "num_workers": 0, "device": "cpu", "precision": "fp32"}
    return Embed(str(runs / "beit"), str(runs / "photos"), str(out), **(settings | given))


def expected(runs: Path, layer: int = 2, pooling: str = "mean") -> Tensor:
    """What evaluation sees of all images, in the order of their folder."""
    images = read_source(open_source(str(runs / "photos"), 3), Data(side=16), Log())
    return extract(load_network(runs / "beit", "cpu").backbone, images, ONE)[layer, pooling]


def files(out: Path) -> dict[str, bytes]:
    """Everything that was written beside and with `out`."""
    return {path.name: path.read_bytes() for path in out.parent.glob(f"{out.stem}.*") if path.is_file()}


@pytest.mark.parametrize("pooling", ["mean", "cls", "both", "2x2"])
@pytest.mark.parametrize("layer", [1, 2])
def test_features_are_those_of_evaluation(layer: int, pooling: str, runs: Path, tmp_path: Path) -> None:
    found = main(config(runs, tmp_path / "f.npy", layer=layer, pooling=pooling))
    features = np.load(tmp_path / "f.npy")
    assert np.abs(features - expected(runs, layer, pooling).numpy()).max() < 1e-6
    assert found["seconds"] > 0
    del found["seconds"]
    assert found == {
        "out": str(tmp_path / "f.npy"),
        "images": 32,
        "rows": 32,
        "unreadable": 0,
        "features": features.shape[1],
        "layer": layer,
        "pooling": pooling,
    }


def test_keys_and_labels_are_kept_in_both_kinds(runs: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        main(config(runs, tmp_path / f"f.{kind}"))
    keys = [f"{name}/{number:02d}.png" for name in ("across", "down") for number in range(16)]
    with open(tmp_path / "f.rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "f.parquet")
    assert [row["key"] for row in rows] == table["key"].to_pylist() == keys
    assert [row["label"] for row in rows] == table["label"].to_pylist() == ["across"] * 16 + ["down"] * 16
    assert [int(row["position"]) for row in rows] == table["position"].to_pylist() == list(range(32))
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), np.load(tmp_path / "f.npy"))
    assert not list(tmp_path.glob("*.parts"))


def test_images_without_classes_have_no_labels(runs: Path, tmp_path: Path) -> None:
    flat = flat_pictures(tmp_path / "flat", 5)
    main(Embed(str(runs / "beit"), str(flat), str(tmp_path / "f.parquet"), num_workers=0, device="cpu"))
    assert pq.read_table(tmp_path / "f.parquet")["label"].to_pylist() == [None] * 5


@pytest.mark.parametrize("data", ["embedded", "parquet", "shards"])
def test_other_kinds_of_data(data: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, read in order, and prepared."""
    where = data
    if data == "parquet":
        where = str(tmp_path / "photos.parquet")
        rows = [{"bytes": path.read_bytes()} for path in sorted((runs / "photos").rglob("*.png"))]
        pq.write_table(pa.table({"image": rows}), where)
    elif data == "shards":
        where = str(tmp_path / "shards")
        assert smalti(["prepare", str(runs / "photos"), "--out", where, "--encoding", "raw"]) == 0
    else:
        images: Any = open_source(data, 3).select(np.arange(50))
        monkeypatch.setattr(embed, "open_with_notes", lambda *_: images)
    main(Embed(str(runs / "beit"), where, str(tmp_path / "f.npy"), device="cpu", precision="fp32"))
    found = np.load(tmp_path / "f.npy")
    if data == "embedded":
        resized = InMemoryDataset(torch.stack([load_square(images, place) for place in range(50)]), images.labels)
        wanted = extract(load_network(runs / "beit", "cpu").backbone, resized, ONE)[2, "mean"].numpy()
    else:
        wanted = expected(runs).numpy()
    assert np.abs(wanted - found).max() < 1e-6


def load_square(images: ImageDataset, position: int) -> Tensor:
    return torch.from_numpy(read_square(images, position, 16).image.copy()).permute(2, 0, 1)


def test_unreadable_images_are_left_out_and_listed(runs: Path, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos")
    whole = {path: path.read_bytes() for path in (photos / "across/03.png", photos / "down/15.png")}
    for path, content in whole.items():
        path.write_bytes(content[:60])
    given = config(runs, tmp_path / "f.npy", max_bad_fraction=0.1)
    found = main(replace(given, images=str(photos)))
    assert (found["rows"], found["unreadable"]) == (30, 2)
    kept = [number for number in range(32) if number not in (3, 31)]
    assert np.abs(np.load(tmp_path / "f.npy") - expected(runs).numpy()[kept]).max() < 1e-6
    with open(tmp_path / "f.rows.csv", newline="") as file:
        assert [int(row["position"]) for row in csv.DictReader(file)] == kept
    listed = [json.loads(line) for line in (tmp_path / "f.bad_files.jsonl").read_text().splitlines()]
    assert [item["path"] for item in listed] == list(map(str, whole))
    assert all("damaged" in item["reason"] for item in listed)


def test_a_whole_batch_may_be_unreadable(runs: Path, tmp_path: Path, small_blocks: None) -> None:
    photos = pictures(tmp_path / "photos")
    for number in range(8):
        (photos / f"across/{number:02d}.png").write_bytes(b"")
    for kind in KINDS:
        given = config(runs, tmp_path / f"f.{kind}", max_bad_fraction=0.5)
        assert main(replace(given, images=str(photos)))["rows"] == 24
    assert np.abs(np.load(tmp_path / "f.npy") - expected(runs).numpy()[8:]).max() < 1e-6


def test_too_many_unreadable_images_stop_it(runs: Path, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos")
    for number in (1, 2):
        (photos / f"down/{number:02d}.png").write_bytes(b"")
    command = ["embed", str(runs / "beit"), str(photos), "--out", str(tmp_path / "f.npy"), *CPU, "--num-workers", "0"]
    assert smalti(command) == 3
    assert not (tmp_path / "f.npy").exists()
    assert smalti([*command, "--max-bad-fraction", "0.1"]) == 0


def test_workers_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        main(config(runs, tmp_path / str(workers) / "f.npy", num_workers=workers))
    assert files(tmp_path / "0" / "f.npy") == files(tmp_path / "2" / "f.npy")


KILLED = (
    DYING
    + """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from smalti.cli import main
from smalti.evaluation import feature_blocks

torch.set_num_threads(1)
feature_blocks.BLOCK, place = 8, sys.argv.pop(1)

if place == "before a block":
    feature_blocks.write_bytes = dying(feature_blocks.write_bytes, 2)
elif place == "inside a block":
    os.fsync = dying(os.fsync, 4)  # of the second block: file and folder, of settings and the first block, come before
elif place == "while it is joined":
    feature_blocks.Blocks._row = dying(feature_blocks.Blocks._row, 20)
elif place == "before it has its name":
    whole = os.replace
    os.replace = lambda old, new: dying(whole, 0 if Path(new).stem == "f" else 1)(old, new)
elif place == "before the blocks are removed":
    from smalti.runs import image_rows
    image_rows.remove_folder = dying(image_rows.remove_folder, 0)
sys.exit(main(sys.argv[1:]))
"""
)
CASES = [
    ("npy", "before a block"),
    ("npy", "inside a block"),
    ("npy", "while it is joined"),
    ("npy", "before it has its name"),
    ("parquet", "before it has its name"),
    ("parquet", "before the blocks are removed"),
]


@pytest.mark.parametrize(("kind", "place"), CASES)
@pytest.mark.processes
def test_killed_at_any_place_it_goes_on_to_the_same_file(
    kind: str, place: str, runs: Path, tmp_path: Path, small_blocks: None, one: Nursery
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "killed" / f"f.{kind}"
    command = ["embed", str(runs / "beit"), str(runs / "photos"), *CPU, "--num-workers", "0", "--batch-size", "3"]
    assert one.killed_itself(KILLED, place, *command, "--out", str(out)), one.told()
    left = out.with_name(f"f.{kind}.parts")
    assert len(list(left.glob("*.safetensors"))) >= 1
    torch.set_num_threads(1)
    try:
        main(config(runs, out))
        main(config(runs, tmp_path / "whole" / f"f.{kind}"))
    finally:
        torch.set_num_threads(threads)
    assert files(out) == files(tmp_path / "whole" / f"f.{kind}")
    assert not left.exists()


def test_blocks_that_are_there_are_not_computed_again(
    runs: Path, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = feature_blocks.Blocks.store, list[int]()

    def stopped(blocks: feature_blocks.Blocks, number: int, block: feature_blocks.Block) -> None:
        if number == 2 and not seen:
            raise KeyboardInterrupt
        seen.append(number)
        store(blocks, number, block)

    with monkeypatch.context() as patch:
        patch.setattr(feature_blocks.Blocks, "store", lambda *given: stopped(*given) if given[1] > 1 else store(*given))
        with pytest.raises(KeyboardInterrupt):
            main(config(runs, tmp_path / "f.npy"))
    monkeypatch.setattr(feature_blocks.Blocks, "store", lambda *given: seen.append(given[1]) or store(*given))
    main(config(runs, tmp_path / "f.npy"))
    assert seen == [2, 3]
    assert np.abs(np.load(tmp_path / "f.npy") - expected(runs).numpy()).max() < 1e-6


def test_what_is_done_is_left_alone(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = main(config(runs, tmp_path / "f.parquet"))
    before = (tmp_path / "f.parquet").stat().st_mtime_ns
    monkeypatch.setattr(embed, "layer_features", None)
    assert main(config(runs, tmp_path / "f.parquet")) | {"seconds": 0} == first | {"seconds": 0}
    assert (tmp_path / "f.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_another_kind_are_not_mixed_and_not_overwritten(
    kind: str, runs: Path, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embed, "write_features", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config(runs, tmp_path / f"f.{kind}"))
    with pytest.raises(UsageError, match=r"parts has other features; layer was 2, and is 1; choose another --out"):
        main(config(runs, tmp_path / f"f.{kind}", layer=1))
    main(config(runs, tmp_path / f"f.{kind}"))
    with pytest.raises(UsageError, match=rf"f.{kind} has other features; pooling was mean, and is cls"):
        main(config(runs, tmp_path / f"f.{kind}", pooling="cls"))
    other = pictures(tmp_path / "other", 3)
    with pytest.raises(UsageError, match="fingerprint was"):
        main(Embed(str(runs / "beit"), str(other), str(tmp_path / f"f.{kind}"), batch_size=3, device="cpu"))


def test_a_moved_model_is_the_same_one(runs: Path, tmp_path: Path) -> None:
    main(config(runs, tmp_path / "f.npy"))
    os.symlink(runs / "beit", tmp_path / "moved")
    given = {"batch_size": 3, "device": "cpu", "precision": "fp32"}
    assert main(Embed(str(tmp_path / "moved"), str(runs / "photos"), str(tmp_path / "f.npy"), **given))["rows"] == 32  # type: ignore[arg-type]


def test_where_the_number_format_is_chosen_by_speed_that_of_the_blocks_is_kept(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embed, "write_features", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config(runs, tmp_path / "f.npy", precision="bf16"))
    main(config(runs, tmp_path / "f.npy", precision="auto"))
    assert json.loads((tmp_path / "f.about.json").read_text())["precision"] == "bf16"


def test_a_damaged_block_is_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embed, "write_features", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(config(runs, tmp_path / "f.npy"))
    block = tmp_path / "f.npy.parts" / "00000000.safetensors"
    whole = block.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(start, len(whole), 97)]
    for damaged in (b"", whole[:-1], whole[:40], *flipped):
        block.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"00000000.safetensors is damaged; .*; remove it, and give"):
            main(config(runs, tmp_path / "f.npy"))
    block.unlink()
    main(config(runs, tmp_path / "f.npy"))
    (tmp_path / "g.npy.parts").mkdir()
    (tmp_path / "g.npy.parts" / "about.json").write_text("[")
    with pytest.raises(DataError, match=r"about.json is damaged"):
        main(config(runs, tmp_path / "g.npy", precision="auto"))


def test_two_cannot_write_the_same_file(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "f.npy.parts").mkdir()
    with writer_lock(tmp_path / "f.npy.parts"), pytest.raises(LockError):
        main(config(runs, tmp_path / "f.npy"))


@pytest.mark.parametrize("kind", ["npy", pytest.param("parquet", marks=pytest.mark.slow)])
@pytest.mark.processes
def test_two_ranks_write_the_same_file(kind: str, runs: Path, tmp_path: Path) -> None:
    """Three blocks, the first two of which are of one rank; an unreadable image in each part."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2100):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 90)).save(photos / f"{number:04d}.png", compress_level=0)
    for number in (5, 2050):
        (photos / f"{number:04d}.png").write_bytes(b"no image")
    for world in (1, 2):
        out = tmp_path / str(world) / f"f.{kind}"
        command = ["embed", str(runs / "beit"), str(photos), *CPU, "--num-workers", "0", "--out", str(out)]
        with started(tmp_path, [command] * world) as ranks:
            assert ranks.all_codes() == [0] * world, "".join(map(ranks.text, range(world)))
            assert ranks.unwanted() == ""
            assert "2098 rows of 16 features" in ranks.text(0)
    assert files(tmp_path / "1" / f"f.{kind}") == files(tmp_path / "2" / f"f.{kind}")
    assert (tmp_path / "2" / "f.bad_files.jsonl").read_text().count("\n") == 2


@pytest.mark.processes
def test_ranks_that_see_other_images_are_told(runs: Path, tmp_path: Path) -> None:
    other = pictures(tmp_path / "other", 3)
    command = ["embed", str(runs / "beit"), str(runs / "photos"), *CPU, "--num-workers", "0"]
    command += ["--out", str(tmp_path / "f.npy")]
    with started(tmp_path, [command, [str(other) if part.endswith("photos") else part for part in command]]) as ranks:
        assert ranks.all_codes() == [8, 8]
    assert "rank 1 of 2 has another network or data set: images is" in ranks.text(0)


MILLION = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from smalti.core.contracts import Sample
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.names import LeftOut
from smalti.models.vit import ViT
from smalti.runs import embed
from smalti.runs.embed import Embed, main
from smalti.evaluation.feature_files import open_features

COUNT, WIDTH, out = int(sys.argv[1]), 128, sys.argv[2]

class Many(ImageDataset):
    kind, channels, classes, left_out = "many", 1, ("even", "odd"), LeftOut()
    pixels = None
    image = np.zeros((8, 8, 1), np.uint8)
    def __len__(self): return COUNT
    def read(self, index): return b""
    def label(self, index): return index % 2
    def key(self, index): return f"{index:08d}.png"
    def name(self, index): return self.key(index)
    def fingerprint(self): return "many"
    def shrunk(self, index, side): return Sample(self.image, 0, "")

def load(run, compute):
    class Stub: window = None
    found = Stub()
    found.backbone = ViT(img_size=(8, 8), patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=1).build()
    found.compute, found.layer_named = compute, lambda layer: 1
    return found

embed.network_of, embed.open_with_notes = load, lambda *_: Many()
embed.layer_features = lambda backbone, images, *_: torch.zeros(len(images), WIDTH)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

count, COUNT = COUNT, 5000
main(Embed("m", "i", f"{out}/warm.{sys.argv[3]}", device="cpu", precision="fp32", num_workers=0, batch_size=1024))
before, COUNT = peak(), count
found = main(Embed("m", "i", f"{out}/f.{sys.argv[3]}", device="cpu", precision="fp32", num_workers=0, batch_size=1024))
assert found["rows"] == COUNT and found["features"] == WIDTH
print(round(peak() - before))
"""


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        pytest.param("npy", 100_000, marks=pytest.mark.slow),
        pytest.param("npy", 1_000_000, marks=pytest.mark.slow),
        pytest.param("parquet", 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_many_rows_take_little_memory(kind: str, rows: int, tmp_path: Path) -> None:
    """Less than half of what the features are, which are 51 MB or 512 MB; keys and labels of the result included."""
    done = subprocess.run(
        [sys.executable, "-c", MILLION, str(rows), str(tmp_path), kind], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < rows * 128 * 4 / 1e6 / 2, done.stdout


def error_of(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert smalti(arguments) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--layer", "3"], 2, "layer 3 of a network of 2 blocks; use 1 to 2"),
        (["--layer", "0"], 2, "layer is 0; blocks are counted from 1"),
        (["--pooling", "max"], 2, "max"),
        (["--out", "f.csv"], 2, "cannot write features to 'f.csv'; use a name in .npy or .parquet"),
        (["--out", ""], 2, "no file to write; use --out features.npy or --out features.parquet"),
        (["--batch-size", "0"], 2, "batch_size is 0; use 1 to 1024"),
    ],
)
def test_wrong_settings_are_said_in_one_line(
    flags: list[str], code: int, text: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in flags else ["--out", str(tmp_path / "f.npy")]
    line = error_of(["embed", str(runs / "beit"), str(runs / "photos"), *CPU, *out, *flags], code, capsys)
    assert line.startswith("error: ")
    assert text in line
    assert not list(tmp_path.iterdir())


def test_a_wrong_model_is_said_in_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = [str(runs / "photos"), "--out", str(tmp_path / "f.npy"), *CPU]
    assert "nowhere is no run folder" in error_of(["embed", "nowhere", *rest], 4, capsys)
    tokenizer = str(runs / "tokenizer")
    assert f"{tokenizer} is a run of train-tokenizer; features are those of" in error_of(
        ["embed", tokenizer, *rest], 2, capsys
    )
    assert "no folder" in error_of(["embed", str(runs / "beit"), str(tmp_path / "none"), *rest[1:]], 3, capsys)


def test_parquet_without_pyarrow_is_refused_first(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else object())
    with pytest.raises(DataError, match="pyarrow is not installed; pip install 'smalti"):
        main(config(runs, tmp_path / "f.parquet"))
    assert main(config(runs, tmp_path / "f.npy"))["rows"] == 32


def test_features_of_a_fine_tuned_network_are_those_of_its_last_block(runs: Path, tmp_path: Path) -> None:
    assert finetune(runs / "photos", runs / "beit", tmp_path / "classes", 2) == 0
    found = main(Embed(str(tmp_path / "classes"), str(runs / "photos"), str(tmp_path / "f.npy"), device="cpu"))
    assert found["layer"] == 2
