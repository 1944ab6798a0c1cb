"""`smalti search`: the nearest images of others, and near duplicates, as text, JSON and a page."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smalti.cli import main as smalti
from smalti.evaluation.feature_files import Part, Row, write_features
from tests.small_runs import CPU, picture, pictures, pretrain, train_tokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, one of which is there twice, `beit`, and its features as `f.npy` and `f.parquet`."""
    folder = tmp_path_factory.mktemp("search")
    photos = pictures(folder / "photos", 8)
    shutil.copy(photos / "across/03.png", photos / "down/copy.png")
    assert train_tokenizer(photos, folder / "tokenizer", 2) == 0
    assert pretrain(photos, folder / "tokenizer", folder / "beit", 2, "--accept-tokenizer") == 0
    for kind in ("npy", "parquet"):
        out = ["--out", str(folder / f"f.{kind}"), "--num-workers", "0"]
        assert smalti(["embed", str(folder / "beit"), str(photos), *CPU, *out]) == 0
    return folder


def search(runs: Path, capsys: pytest.CaptureFixture[str], *arguments: str, kind: str = "npy") -> tuple[str, Any]:
    """What is printed, and the result."""
    capsys.readouterr()
    assert smalti(["search", str(runs / f"f.{kind}"), *arguments, *CPU, "--json"]) == 0
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    return text, json.loads(last)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_the_nearest_image_is_the_image_itself(kind: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(runs / "photos/across/03.png")
    text, found = search(runs, capsys, image, "--count", "4", kind=kind)
    assert found["rows"] == 17
    (nearest,) = found["nearest"]
    assert nearest["image"] == image
    similarities = [one["similarity"] for one in nearest["found"]]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[:2] == [pytest.approx(1, abs=1e-4)] * 2
    first, second = nearest["found"][:2]
    del first["similarity"], second["similarity"]
    assert first == {"position": 3, "key": "across/03.png", "label": "across"}
    assert second == {"position": 16, "key": "down/copy.png", "label": "down"}
    lines = text.splitlines()
    assert lines[0] == f"nearest to {image}, of 17:"
    assert lines[1].split() == ["1.0000", "across/03.png", "(across)"]
    assert len(lines) == 5


def test_the_order_is_that_of_the_cosine_of_standardised_features(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smalti.runs.network import load_network

    picture(99, across=True).save(tmp_path / "new.png")
    _, found = search(runs, capsys, str(tmp_path / "new.png"), "--count", "17")
    bank = np.load(runs / "f.npy").astype(np.float64)
    query = load_network(runs / "beit", "cpu").features(tmp_path / "new.png").numpy()
    mean, std = bank.mean(0), bank.std(0, ddof=1)
    bank, query = (bank - mean) / std, (query - mean) / std
    cosine = bank @ query[0] / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
    (nearest,) = found["nearest"]
    positions = [one["position"] for one in nearest["found"]]
    assert sorted(positions) == list(range(17))
    assert cosine[positions] == pytest.approx(-np.sort(-cosine), abs=1e-4)
    assert [one["similarity"] for one in nearest["found"]] == pytest.approx(cosine[positions], abs=1e-4)


def test_near_duplicates_are_listed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, found = search(runs, capsys, "--near-duplicates", "0.9999")
    assert found["found"] == 1
    assert [image["key"] for image in found["pairs"][0]] == ["across/03.png", "down/copy.png"]
    assert text.splitlines() == [
        "1.0000  across/03.png  down/copy.png",
        "1 pairs of 17 images with a similarity of 0.9999 or more",
    ]
    text, found = search(runs, capsys, "--near-duplicates", "1e-9", "--count", "2")
    lines, number = text.splitlines(), found["found"]
    assert len(found["pairs"]) == 2 == len(lines) - 1 < number, "a terminal is not flooded"
    end = f"{number} pairs of 17 images with a similarity of 1e-09 or more, the first 2 of them above (--count)"
    assert lines[-1] == end
    text, found = search(runs, capsys, "--near-duplicates", "1e-9", "--count", str(number))
    assert (len(found["pairs"]), len(text.splitlines())) == (number, number + 1)


def test_the_page_shows_the_images(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, page = str(runs / "photos/across/03.png"), tmp_path / "page.html"
    _, found = search(runs, capsys, image, image, "--count", "3", "--out", str(page))
    assert found["out"] == str(page)
    html = page.read_text()
    assert html.count("data:image/png") == 2 * 4
    assert "down/copy.png" in html
    search(runs, capsys, "--near-duplicates", "0.9999", "--out", str(page), kind="parquet")
    assert page.read_text().count("data:image/png") == 2
    search(runs, capsys, "--near-duplicates", "0.999", "--count", "1", "--out", str(page))
    assert page.read_text().count("data:image/png") == 2


def test_images_elsewhere_are_shown_and_changed_ones_are_not(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(runs / "photos", moved)
    image, page = str(runs / "photos/down/01.png"), ["--out", str(tmp_path / "page.html")]
    search(runs, capsys, image, *page, "--data", str(moved))
    (moved / "across/00.png").unlink()
    line = error_of(["search", str(runs / "f.npy"), image, *page, "--data", str(moved), *CPU], 3, capsys)
    assert "the images have changed since their features were computed; image " in line


def error_of(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert smalti(arguments) == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_another_network_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(runs / "photos", runs / "tokenizer", tmp_path / "other", 1, "--accept-tokenizer") == 0
    image, features = str(runs / "photos/down/01.png"), str(runs / "f.npy")
    line = error_of(["search", features, image, "--model", str(tmp_path / "other"), *CPU], 2, capsys)
    assert f"f.npy has no features of {tmp_path / 'other'}; another network made them, which then was in" in line
    shutil.copytree(runs / "beit", tmp_path / "moved")
    assert smalti(["search", features, image, "--model", str(tmp_path / "moved"), *CPU]) == 0


def test_near_duplicates_by_a_graph(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", str(runs / "f.npy"), "--near-duplicates", "0.5", "--json", *CPU]
    if importlib.util.find_spec("faiss") is None:
        assert "approximate needs faiss, which is not installed" in error_of([*command, "--approximate"], 2, capsys)
        return
    found = []
    for flags in ([], ["--approximate"]):
        assert smalti([*command, *flags]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["found"])
    assert found[0] == found[1] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "nothing to search for; give IMAGE, or --near-duplicates 0.95"),
        (["a.png", "--near-duplicates", "0.9"], 2, "search for one of them at a time"),
        (["--near-duplicates", "1.5"], 2, "near_duplicates is 1.5; use a similarity in (0, 1]"),
        (["a.png", "--approximate"], 2, "approximate without near_duplicates; the nearest images are exact"),
        (["a.png", "--count", "0"], 2, "count is 0; use at least 1"),
        (["a.png", "--out", "a.txt"], 2, "cannot write 'a.txt'; use a name in .html"),
        (["none.png"], 3, "cannot read none.png"),
    ],
)
def test_wrong_commands_are_said_in_one_line(
    arguments: list[str], code: int, text: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in error_of(["search", str(runs / "f.npy"), *arguments, *CPU], code, capsys)


def test_what_is_no_image_or_no_features_is_said_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "f.png")
    assert "holds no features" in error_of(["search", str(tmp_path / "f.png"), "a.png"], 3, capsys)
    (tmp_path / "bad.png").write_bytes(b"no image")
    line = error_of(["search", str(runs / "f.npy"), str(tmp_path / "bad.png"), *CPU], 3, capsys)
    assert "not an image in a format smalti knows" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", "1"),
        ("layer", 1.5),
        ("model", 3),
        ("model", None),
        ("images", []),
        ("pooling", "both"),
        ("weights", 1),
    ],
)
def test_absurd_descriptions_are_said_in_one_line(
    name: str, value: Any, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("npy", "rows.csv", "about.json"):
        shutil.copy(runs / f"f.{suffix}", tmp_path)
    about = json.loads((tmp_path / "f.about.json").read_text())
    (tmp_path / "f.about.json").write_text(json.dumps(about | {name: value}))
    error_of(["search", str(tmp_path / "f.npy"), str(runs / "photos/across/03.png"), *CPU], 3, capsys)


def features(folder: Path, **about: Any) -> Path:
    """A file of two rows that says something of itself."""
    path = folder / "f.npy"
    said = {"model": "m", "weights": "w", "images": "embedded", "layer": 1, "pooling": "mean"} | about
    rows = [Row(0, "a.png", ""), Row(1, "b.png", "")]
    write_features(path, lambda: [Part(rows, np.eye(2, 3, dtype=np.float32))], 3, said)
    return path


def test_no_request_is_sent_because_a_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = features(tmp_path, images="HTTPS://me:word@host/0.tar?sig=word")
    command = ["search", str(path), "--near-duplicates", "0.0001", "--out", str(tmp_path / "page.html"), *CPU]
    assert smalti(command) == 3
    line = capsys.readouterr().err
    assert "nothing is fetched from there unasked; f.npy says that its images are at HTTPS://host/0.tar; give" in line
    assert "word" not in line


@pytest.mark.parametrize("place", ["/etc", "photos/../../elsewhere", "link"])
def test_nothing_outside_the_folder_of_a_file_is_opened_because_it_says_so(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("/etc")
    path = features(tmp_path, images=str(tmp_path / place))
    command = ["search", str(path), "--near-duplicates", "0.0001", "--out", str(tmp_path / "page.html"), *CPU]
    assert smalti(command) == 3
    line = capsys.readouterr().err
    assert "nothing is opened there unasked; f.npy says that its images are in" in line
    assert "outside its own folder; give it with --data, if it is right" in line


@pytest.mark.parametrize("window", [0, "auto", "12", [], [5], [1, 1], [[0, 1]], ["a", "b"], [0, "inf"]])
def test_a_window_that_is_none_is_refused(window: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = features(tmp_path, images="embedded", window=window)
    command = ["search", str(path), "--near-duplicates", "0.0001", "--out", str(tmp_path / "page.html"), *CPU]
    assert smalti(command) == 3
    assert "f.npy holds no features of smalti; what it says of itself has a value window of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["f.npy", "f.rows.csv", "f.about.json"])
def test_a_pipe_in_the_place_of_a_file_of_features_is_not_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = features(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert smalti(["search", str(path), "--near-duplicates", "0.9", *CPU]) == 3
    assert "ordinary file" in capsys.readouterr().err or name == "f.npy"


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 400, "null", "[1]", '{"a": 1e999}', '{"model": 5}'])
def test_what_features_say_of_themselves_is_not_believed(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = features(tmp_path)
    (tmp_path / "f.about.json").write_text(text)
    assert smalti(["search", str(path), "--near-duplicates", "0.9", *CPU]) == 3
    assert "f.npy holds no features of smalti" in capsys.readouterr().err
