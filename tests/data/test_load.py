"""DATA, as given on the command line, to images in memory."""

import io
import json
import os
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset, embedded
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.open import open_source
from smalti.data.load import Data, InMemoryData, affordable, split_held_out
from smalti.data.reading import even_sample, map_images, ordered_map, spread_over_classes
from tests.contracts import check_dataset
from tests.small_runs import pictures


def parts(images: InMemoryData) -> tuple[InMemoryDataset, InMemoryDataset]:
    return images.train, images.held_out


def fill(folder: Path, count: int, suffix: str = ".png") -> None:
    """Images whose every pixel is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (12, 10), number).save(folder / f"{number:03d}{suffix}")


def resident(length: int) -> InMemoryDataset:
    return InMemoryDataset(torch.zeros(length, 1, 4, 4, dtype=torch.uint8), torch.arange(length))


def values(images: InMemoryDataset) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def test_a_folder_is_read_into_memory_and_split(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    train, held_out = parts(Data(str(tmp_path), side=8, held_out=0.2).load(Log()))
    assert train.images.shape == (16, 3, 8, 8)
    assert held_out.images.shape == (4, 3, 8, 8)
    assert train.images.dtype == torch.uint8
    assert sorted(values(train) + values(held_out)) == list(range(20))


def test_reading_twice_gives_the_same_images_and_the_same_split(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    data = Data(str(tmp_path), channels=1, side=4, held_out=0.3)
    (train, held_out), (train_again, held_out_again) = parts(data.load(Log())), parts(data.load(Log()))
    assert torch.equal(train.images, train_again.images)
    assert torch.equal(held_out.images, held_out_again.images)


def test_class_folders_become_labels(tmp_path: Path) -> None:
    fill(tmp_path / "cats", 4)
    fill(tmp_path / "dogs", 4)
    train, held_out = parts(Data(str(tmp_path), side=8).load(Log()))
    assert train.classes == ("cats", "dogs")
    assert sorted(train.labels.tolist() + held_out.labels.tolist()) == [0] * 4 + [1] * 4


def test_the_centre_square_is_taken(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:16] = 200
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    train, _ = parts(Data(str(tmp_path), channels=1, side=8).load(Log()))
    assert train.images.unique().tolist() == [200]


def test_a_limit_takes_an_even_sample(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    train, held_out = parts(Data(str(tmp_path), channels=1, side=4, limit=10).load(Log()))
    assert [value // 3 for value in sorted(values(train) + values(held_out))] == list(range(10))


def test_an_even_sample_has_all_classes_where_they_take_turns() -> None:
    """Positions at equal distances had one class of ten, as of the embedded images."""
    classes = [position % 10 for position in even_sample(5000, 500)]
    assert min(classes.count(number) for number in range(10)) >= 25


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_an_even_sample_is_one_of_each_equal_part(length: int, limit: int) -> None:
    chosen = even_sample(length, limit)
    count = min(length, limit)
    parts = [part * length // count for part in range(count + 1)] if count else [0]
    assert len(chosen) == count
    assert all(low <= place < high for place, low, high in zip(chosen, parts, parts[1:], strict=False))


def test_a_bad_file_is_listed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "images", 10)
    bad = tmp_path / "images" / "005.png"
    bad.write_text("no image")
    listing = tmp_path / "run" / "bad_files.jsonl"
    train, held_out = parts(Data(str(tmp_path / "images"), channels=1, side=4).load(Log(), listing))
    assert sorted(values(train) + values(held_out)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [json.loads(line) for line in listing.read_text().splitlines()] == [
        {"path": str(bad), "reason": "not an image in a format smalti knows"}
    ]
    assert "left out: 1 of 10 images cannot be read" in capsys.readouterr().err


def test_no_list_is_written_where_every_file_is_good(tmp_path: Path) -> None:
    fill(tmp_path / "images", 3)
    Data(str(tmp_path / "images"), side=4).load(Log(), tmp_path / "bad_files.jsonl")
    assert not (tmp_path / "bad_files.jsonl").exists()


def test_too_many_bad_files_are_a_data_error_and_still_listed(tmp_path: Path) -> None:
    fill(tmp_path / "images", 20)
    for number in range(3):
        (tmp_path / "images" / f"{number:03d}.png").write_bytes(b"")
    data = Data(str(tmp_path / "images"), side=4, max_bad_fraction=0.1)
    message = (
        r"3 of 20 images cannot be read, first .*000\.png;.*raise --data\.max-bad-fraction \(now 0\.1 of the images\)$"
    )
    with pytest.raises(DataError, match=message):
        data.load(Log(), tmp_path / "bad_files.jsonl")
    assert len((tmp_path / "bad_files.jsonl").read_text().splitlines()) == 3
    assert len(Data(str(tmp_path / "images"), side=4, max_bad_fraction=0.15).load(Log()).train) > 0


def test_a_folder_of_bad_files_only_is_a_data_error_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        Data(str(tmp_path), max_bad_fraction=1.0).load(Log())


@pytest.mark.parametrize("name", ["new\nline.png", "\udcff.png"])
def test_a_bad_file_of_any_name_is_one_line_of_json(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "images", 5)
    (tmp_path / "images" / name).write_text("x")
    Data(str(tmp_path / "images"), side=4).load(Log(), tmp_path / "bad.jsonl")
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [str(tmp_path / "images" / name)]


def test_no_warning_of_the_decoder_reaches_the_user_and_the_filters_stay_as_they_were(tmp_path: Path) -> None:
    """An image of more than 89 million pixels warns in Pillow; many threads must not leave a filter behind."""
    fill(tmp_path / "images", 60)
    Image.new("1", (9_500, 9_500)).save(tmp_path / "images" / "large.png")
    filters: Any = warnings.filters
    before = list(filters)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inside = list(warnings.filters)
            Data(str(tmp_path / "images"), side=4).load(Log())
            left = list(warnings.filters)
    finally:
        filters[:] = before
    assert [str(warning.message) for warning in caught] == []
    assert left == inside


def test_one_image_is_too_few(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(DataError, match="only 1 readable image; training and measuring need at least 2"):
        Data(str(tmp_path), side=4).load(Log())


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same 12 labelled images as a folder, a CSV file and a shard."""
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "images" / "cats", 6)
    fill(tmp_path / "images" / "dogs", 6)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    rows = [f"images/{path.parent.name}/{path.name},{path.parent.name}" for path in paths]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number, path in enumerate(paths):
            archive.add(path, f"{number}.png")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 4
            archive.addfile(label, io.BytesIO(path.parent.name.encode()))
    return {"folder": tmp_path / "images", "list": tmp_path / "list.csv", "shards": tmp_path / "0.tar"}


@pytest.mark.parametrize("kind", ["list", "shards"])
def test_lists_and_shards_load_as_the_folder_does(kinds: dict[str, Path], kind: str) -> None:
    loaded = (parts(Data(str(kinds[name]), side=8).load(Log())) for name in ("folder", kind))
    for ours, theirs in zip(*loaded, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.classes == theirs.classes == ("cats", "dogs")
    assert affordable(Data(str(kinds[kind]), side=8), 0.01) == 64 or affordable(Data(str(kinds[kind]), side=8), 5) > 64


@pytest.mark.parametrize("kind", ["folder", "list", "shards", "embedded"])
def test_every_source_has_what_a_reader_needs(kinds: dict[str, Path], kind: str) -> None:
    source = open_source(str(kinds.get(kind, kind)), 3)
    check_dataset(source)
    assert source[0].image.shape[2] == 3
    assert source.shrunk(1, 5).label == source[1].label
    assert source.name(0)


def test_a_brace_pattern_is_a_pattern_only_where_nothing_is_called_so(kinds: dict[str, Path], tmp_path: Path) -> None:
    fill(tmp_path / "odd{0..3}", 2)
    assert isinstance(open_source(str(tmp_path / "odd{0..3}"), 1), Folder)
    assert len(open_source(str(tmp_path / "{0..0}.tar"), 1)) == 12


def test_notes_and_what_is_left_out_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "Cat", 3)
    fill(tmp_path / "cat", 3)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "._x.png").touch()
    Data(str(tmp_path), side=4).load(Log())
    lines = capsys.readouterr().err.splitlines()
    assert "note: classes 'Cat', 'cat' differ in case or Unicode form only, and are taken as different" in lines
    hidden = "1 hidden or made by the system (first cat/._x.png)"
    assert f"left out: {hidden}, 1 not a regular file (first cat/pipe.png)" in lines


def test_links_out_of_a_folder_are_a_setting(tmp_path: Path) -> None:
    fill(tmp_path / "outside", 4)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"1 links lead out of the folder: follow them with --data.follow-links all"):
        Data(str(tmp_path / "root"), side=4).load(Log())
    assert len(Data(str(tmp_path / "root"), side=4, follow_links="all").load(Log()).train) == 3


def test_a_pipe_in_a_list_is_a_bad_file_and_no_wait(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_text("pipe.png\n" + "".join(f"{n:03d}.png\n" for n in range(5)))
    Data(str(tmp_path / "list.txt"), side=4).load(Log(), tmp_path / "bad.jsonl")
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {
        "path": str(tmp_path / "pipe.png"),
        "reason": "not a regular file",
    }


def test_in_order_keeps_the_order_and_does_not_run_ahead() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(2) as threads:
        results = ordered_map(threads, lambda item: begun.append(item) or item, range(1000), ahead=10)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert len(begun) <= 10
        assert list(results) == list(range(3, 1000))


def test_each_ends_where_it_is_left_early() -> None:
    begun: list[int] = []
    alive = threading.active_count()
    with map_images(lambda item: sleep(0.01) or begun.append(item), range(250), Log(), "look") as found:
        assert next(iter(found)) == (0, None)
    assert threading.active_count() == alive
    assert len(begun) < 250


@pytest.mark.parametrize("path", ["pipe:touch ran", "http://example.org/{0..1}.tar", "file:///etc", "ftp://x/0.tar"])
def test_h17_data_is_never_a_command_or_any_address(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"cannot open .*; .*(is none of the addresses that are read|never run); give a"
    ):
        Data(path).load(Log())
    assert not (tmp_path / "ran").exists()


def test_h02_what_is_no_data_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("file.png", "file.zip", "file.npy"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        ("", "no images given; use --data FOLDER, or --data embedded"),
        (str(tmp_path / "nowhere"), "no folder .*nowhere; it does not exist; check the path$"),
        ("nowhere", f"no folder nowhere; it does not exist; check the path; it is looked for in {tmp_path}$"),
        (str(tmp_path / "emtpy"), "no folder .*emtpy; it does not exist; check the path: did you mean 'empty'?"),
        (str(tmp_path / "file.png"), "file.png is a file; DATA is a folder of images; give the folder it lies in"),
        (str(tmp_path / "file.zip"), "file.zip is no zip archive; .*; fetch it again"),
        (str(tmp_path / "file.npy"), r"file.npy is a file; DATA is a folder of images, a list of them \(.txt"),
        (str(tmp_path / "pipe"), "pipe is neither a folder nor a file; not a regular file; check the path"),
        (str(tmp_path / "empty"), "no images in"),
    ):
        with pytest.raises(DataError, match=message):
            Data(path).load(Log())


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28), (1, 14)])
def test_embedded_images_come_in_the_asked_size(channels: int, side: int) -> None:
    data = Data("embedded", channels=channels, side=side, limit=40)
    train, held_out = parts(data.load(Log()))
    assert train.images.shape == held_out.images.shape == (40, channels, side, side)
    assert torch.bincount(train.labels).tolist() == [4] * 10
    if side == 28:
        assert torch.equal(train.images[:, :1], embedded("train").images[:40])
        assert torch.equal(held_out.images[:, :1], embedded("test").images[:40])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("length", [2, 3, 100])
def test_the_split_puts_a_share_aside_and_keeps_both_sides_filled(length: int, share: float) -> None:
    train, held_out = parts(split_held_out(resident(length), share))
    assert sorted(train.labels.tolist() + held_out.labels.tolist()) == list(range(length))
    assert len(held_out) == min(max(1, round(share * length)), length - 1)


def test_held_out_images_are_spread_over_the_folder() -> None:
    _, held_out = parts(split_held_out(resident(1000), 0.1))
    assert abs(float(held_out.labels.double().mean()) - 500) < 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, r"0 channels; use 1 \(grey\), 3 \(RGB\), or as many as the images have, at most 64"),
        ({"side": 3}, "images of 3 pixels; use at least 4"),
        ({"held_out": 0.0}, "a held-out share of 0.0"),
        ({"held_out": 1.0}, "a held-out share of 1.0"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction 1.5"),
        ({"limit": 1}, "a limit of 1 images; use at least 2"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Data("x", **fields)


def test_the_first_images_to_learn_from_are_of_all_classes(tmp_path: Path) -> None:
    """A folder comes class by class; a tokenizer starts from the first images."""
    train = Data(str(pictures(tmp_path / "photos", 30)), side=8).load(Log()).train
    first = train.labels[:20].double().mean()
    assert 0.2 < first < 0.8


def test_a_few_images_are_spread_over_their_classes() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    chosen = spread_over_classes(labels, 6)
    assert labels[chosen].tolist() == [0, 0, 0, 1, 1, 2]
    assert len(set(chosen.tolist())) == len(chosen)
    assert len(spread_over_classes(torch.arange(100), 12).tolist()) == 12
    assert [place // 2 for place in spread_over_classes(torch.full((8,), -1), 4)] == [0, 1, 2, 3]
    assert spread_over_classes(torch.full((3,), -1), 12).tolist() == [0, 1, 2]


@pytest.mark.parametrize("differ", [False, True])
def test_equal_images_are_worth_a_line(differ: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        Image.new("RGB", (16, 16), (9 if differ and number == 5 else 0,) * 3).save(tmp_path / f"{number}.png")
    Data(path=str(tmp_path), side=8).load(Log())
    said = "warning: all 6 images are the same, so what is learned from them means nothing"
    lines = capsys.readouterr().err
    assert (said in lines) is not differ
    assert ("note: " in lines) is differ, "one line says it"
