"""`smalti prepare`: what it makes of every kind of DATA, what it says, and what it refuses."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.cli import main as smalti
from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import embedded
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.open import open_source
from smalti.data.datasets.prepared import Prepared
from smalti.data.load import Data
from smalti.data.reading import even_sample
from smalti.runs.prepare import Prepare, main


def scene(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth picture that no other seed resembles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of three pictures: a large one, a small JPEG, a PNG."""
    for label, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        scene(3 * label, (200, 150)).save(folder / "0.jpg", quality=95)
        scene(3 * label + 1).save(folder / "1.jpg", quality=60)
        scene(3 * label + 2).save(folder / "2.png")
    return tmp_path / "photos"


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert smalti([*arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


def test_a_folder_is_prepared_once(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "shards")
    first = json_of(["prepare", str(photos), "--out", out, "--side", "48"], capsys)
    size = (tmp_path / "shards" / "shard-00000.tar").stat().st_size
    assert first.pop("seconds") > 0
    assert first == {
        "out": out,
        "images": 6,
        "classes": 2,
        "bytes": size,
        "bytes_per_image": size / 6,
        "parts": 1,
        "written": 1,
        "bad": 0,
        "digest": Prepared(tmp_path / "shards", 3).fingerprint(),
    }
    assert smalti(["prepare", str(photos), "--out", out, "--side", "48"]) == 0
    said = capsys.readouterr()
    assert f"{out} is done already, nothing was written; every shard is whole" in said.out
    assert "6 images in 1 shard, " in said.out
    assert f"digest {first['digest']}" in said.out
    assert f"{out}: 6 images are there already, shards 0 to 0" in said.err


def test_the_shards_show_what_the_folder_shows(photos: Path, tmp_path: Path) -> None:
    main(Prepare(str(photos), str(tmp_path / "shards"), side=48))
    source, made = Folder(photos, 3), Prepared(tmp_path / "shards", 3)
    assert made.classes == source.classes
    for index in range(6):
        expected, found = source.shrunk(index, 48), made[index]
        assert (found.key, found.label, found.image.shape) == (expected.key, expected.label, expected.image.shape)
        assert np.abs(expected.image.astype(float) - found.image).mean() < 3
    assert made.read(1) == (photos / "cat" / "1.jpg").read_bytes(), "a small JPEG is not encoded again"
    assert made.about.settings.data == str(photos)


def test_lists_and_shards_give_the_same_pixels(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    names = [f"{label}/{name}" for label in ("cat", "dog") for name in ("0.jpg", "1.jpg", "2.png")]
    rows = [f"photos/{name},{name[:3]}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number, name in enumerate(names):
            archive.add(photos / name, f"{number}.{name[-3:]}")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 3
            archive.addfile(label, io.BytesIO(name[:3].encode()))
    found: list[Prepared] = []
    for data in ("photos", "list.csv", "0.tar"):
        main(Prepare(str(tmp_path / data), str(tmp_path / f"shards-{data}"), side=48))
        found.append(Prepared(tmp_path / f"shards-{data}", 3))
    for made in found[1:]:
        assert made.classes == found[0].classes == ("cat", "dog")
        for index in range(6):
            assert made.read(index) == found[0].read(index)
            assert made[index].label == found[0][index].label
    assert [made.about.settings.source for made in found] == ["folder", "list", "shards"]


def test_embedded_images_are_kept_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Prepare("embedded", "shards", encoding="raw", channels=1, limit=30)
    assert main(config)["images"] == 30
    made, images = Prepared(tmp_path / "shards", 1), embedded("train")
    assert (made.about.settings.data, made.classes) == ("embedded", images.classes)
    for index, position in enumerate(even_sample(len(images), 30)):
        assert np.array_equal(made[index].image, images[position].image)
        assert made[index].label == images[position].label
    assert main(config)["written"] == 0


def test_prepared_shards_are_data_for_every_verb(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "shards")
    main(Prepare(str(photos), out, encoding="raw", side=48))
    source = open_source(out, 3)
    assert isinstance(source, Prepared)
    assert source.key(5) == "dog/2.png"
    checked = json_of(["check", out], capsys)
    assert (checked["kind"], checked["formats"], checked["classes"]) == ("prepared", {"array": 6}, {"cat": 3, "dog": 3})
    ours, theirs = Data(out, side=16).load(Log()), Data(str(photos), side=16).load(Log())
    assert ours.train.classes == theirs.train.classes
    assert torch.equal(ours.train.labels, theirs.train.labels)
    difference = ours.train.images.double() - theirs.train.images.double()
    assert float(difference.abs().mean()) < 2  # of two resizes
    main(Prepare(out, str(tmp_path / "small"), side=16))
    assert min(open_source(str(tmp_path / "small"), 3)[0].image.shape[:2]) == 16
    (tmp_path / "shards" / "shard-00000.tar").write_bytes(b"")
    assert smalti(["check", out]) == 3
    assert "shard-00000.tar is damaged; it has 0 bytes, not " in capsys.readouterr().err


def test_other_arguments_are_refused_by_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "shards")
    main(Prepare(str(photos), out, side=48))
    capsys.readouterr()
    assert smalti(["prepare", str(photos), "--out", out, "--side", "32"]) == 2
    message = f"error: {out} was prepared with side 48, now 32; use the same side, or another --out"
    assert capsys.readouterr().err.splitlines() == [message]
    with pytest.raises(UsageError, match=f"was prepared with data {photos}, now {photos}/cat"):
        main(Prepare(str(photos / "cat"), out, side=48))
    with pytest.raises(UsageError, match="was prepared with encoding jpeg, now raw"):
        main(Prepare(str(photos), out, side=48, encoding="raw"))
    (photos / "cat" / "2.png").unlink()
    with pytest.raises(
        UsageError, match=r"was prepared from other images; .*: 6 images then, 5 now; use another --out"
    ):
        main(Prepare(str(photos), out, side=48))
    monkeypatch.chdir(photos.parent)
    scene(2).save(photos / "cat" / "2.png")
    assert main(Prepare("photos", "shards", side=48))["written"] == 0, "a relative path names the same data"


def test_the_quality_does_not_matter_where_pixels_are_stored(photos: Path, tmp_path: Path) -> None:
    main(Prepare(str(photos), str(tmp_path / "shards"), encoding="raw", quality=90))
    assert main(Prepare(str(photos), str(tmp_path / "shards"), encoding="raw", quality=80))["written"] == 0


def test_what_is_left_out_is_said_and_listed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "dog" / "bad\x1b[31m.png").write_text("no image")
    os.mkfifo(photos / "dog" / "pipe.png")
    (photos / "Dog").mkdir()
    scene(9).save(photos / "Dog" / "9.png")
    result = json_of(["prepare", str(photos), "--out", str(tmp_path / "shards")], capsys)
    assert (result["images"], result["bad"]) == (7, 1)
    line = json.loads((tmp_path / "shards" / "bad_files.jsonl").read_text())
    assert line == {
        "path": str(photos / "dog" / "bad\x1b[31m.png"),
        "reason": "not an image in a format smalti knows",
    }
    main(Prepare(str(photos), str(tmp_path / "shards")))
    said = capsys.readouterr().err
    assert "left out: 1 not a regular file (first dog/pipe.png)" in said
    assert "note: classes 'Dog', 'dog' differ in case" in said
    assert "\x1b" not in said


def test_too_many_bad_files_stop_it(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        (photos / "cat" / name).write_text("x")
    arguments = ["prepare", str(photos), "--out", str(tmp_path / "shards")]
    assert smalti(arguments) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: 2 of 8 images cannot be read, first {photos}/cat/a.png; not an image in a format")
    assert "; remove them (smalti check names them all), or raise --max-bad-fraction (now " in last
    assert smalti([*arguments, "--max-bad-fraction", "0.25"]) == 0


def test_a_place_that_cannot_be_written_is_an_output_error(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert smalti(["prepare", str(photos), "--out", str(tmp_path / "file" / "shards")]) == 6
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cannot write ")
    assert smalti(["prepare", str(photos), "--out", str(photos / "cat")]) == 2
    assert "cat is not empty; 0.jpg is not what smalti prepare writes; choose another --out" in capsys.readouterr().err


def test_no_data_is_a_data_error_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere; it does not exist"):
        main(Prepare(str(tmp_path / "nowhere"), str(tmp_path / "shards")))
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"out": ""}, "no folder to write; use --out FOLDER"),
        ({"side": 8}, "a side of 8 pixels; use at least 16"),
        ({"quality": 0}, "a quality of 0; choose 1 to 100"),
        ({"quality": 101}, "a quality of 101; choose 1 to 100"),
        ({"channels": 0}, r"0 channels; use 1 \(grey\), 3 \(RGB\), or as many"),
        ({"limit": 0}, "a limit of 0 images; use at least 1"),
        ({"max_bad_fraction": 1.5}, r"max_bad_fraction 1\.5; choose one in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prepare("x", **({"out": "shards"} | fields))
