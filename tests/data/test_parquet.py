"""Parquet: columns, labels, which files of a folder, row groups of any size, bad cells, damage, threads, processes."""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.cli import main as smalti
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets import parquet, parquet_pages, tables
from smalti.data.datasets.data_files import LocalFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import ReadOptions, open_source
from smalti.data.datasets.parquet import Parquet, split_of
from smalti.data.datasets.tables import TableDataset
from smalti.data.load import Data, official_splits
from smalti.data.reading import try_read
from smalti.runs.check import Check, main
from tests.contracts import check_dataset
from tests.data.tables import IMAGE, features, png, save_to_disk, table, write


def opened(path: Path | str, channels: int = 1) -> TableDataset:
    source = open_source(str(path), channels)
    assert isinstance(source, TableDataset)
    return source


def values(source: ImageDataset) -> list[int]:
    return [int(source[position].image[0, 0, 0]) for position in range(len(source))]


def test_a_folder_as_the_hub_hands_it_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write(tmp_path / f"data/train-0000{number}-of-00002.parquet", table(range(6 * number, 6 * number + 6)), 4)
    write(tmp_path / "data/test-00000-of-00001.parquet", table([99]))
    write(tmp_path / ".cache/huggingface/train-00000-of-00001.parquet", table([98]))
    (tmp_path / "README.md").touch()
    source = open_source(str(tmp_path), 1, Log())
    assert isinstance(source, Parquet)
    check_dataset(source)
    assert values(source) == list(range(12))
    assert (source.kind, source.classes) == ("parquet", ("cat", "dog", "emu"))
    assert [source[position].label for position in range(12)] == [0, 1, 2] * 4
    train = "train-{00000..00001}-of-00002.parquet"
    assert source.notes == (f"splits: {train} is learned from, test-00000-of-00001.parquet is kept for the end",)
    assert official_splits(str(tmp_path), "")[1] == f"{tmp_path}/data/test-00000-of-00001.parquet"
    assert source.name(7) == f"{tmp_path}/data/train-00001-of-00002.parquet:1"
    assert source.key(5) == "train-00000-of-00002.parquet:5"
    assert source.shrunk(0, 2).image.shape == (2, 2, 1)
    assert "index files  2/2" in capsys.readouterr().err
    result = main(Check(str(tmp_path), side=16))
    assert (result["kind"], result["images"], result["readable"]) == ("parquet", 13, 13)
    assert list(result["splits"].values()) == [12, 1]
    assert result["classes"] == {"cat": 5, "dog": 4, "emu": 4}


def test_files_of_a_pattern_and_one_file(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.parquet", table([number]))
    assert values(opened(tmp_path / "{0..2}.parquet")) == [0, 1, 2]
    assert values(opened(tmp_path / "1.parquet")) == [1]
    with pytest.raises(DataError, match=r"no file .*3\.parquet \(and 1 more\); it does not exist or is no file; check"):
        opened(tmp_path / "{0..4}.parquet")


def test_a_folder_of_images_with_a_table_beside_them_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    write(tmp_path / "metadata.parquet", table([1, 2]))
    assert open_source(str(tmp_path), 1).kind == "folder"


BYTES, TEXT = pa.array([png(1), png(2)]), pa.array(["dog", "ant"])
MISSING = "1 of 2 images have no label, and are left out where labels are used"
STRUCT = pa.array([{"bytes": png(3), "path": None}, {"bytes": png(4), "path": "x"}], IMAGE)


@pytest.mark.parametrize(
    ("content", "first", "classes", "notes"),
    [
        ({"img": BYTES}, 1, (), []),
        ({"whatever": BYTES}, 1, (), []),
        ({"a.b": STRUCT}, 3, (), []),
        (
            {"Mask": BYTES, "Image": STRUCT},
            3,
            (),
            ["columns of images: Image is read, Mask not; --data.image-column NAME for another"],
        ),
        (
            {"image": BYTES, "views": pa.array([[png(5)], []])},
            1,
            (),
            ["column views has several images in a row and is not read"],
        ),
        ({"image": BYTES.cast(pa.large_binary()), "label": TEXT}, 1, ("ant", "dog"), []),
        ({"x": BYTES, "cls": TEXT.dictionary_encode()}, 1, ("ant", "dog"), []),
        ({"x": BYTES, "label": pa.array([True, False])}, 1, ("0", "1"), []),
        ({"x": BYTES, "label": pa.array([2, 0], pa.uint8())}, 1, ("0", "1", "2"), []),
        ({"x": BYTES, "label": pa.array([0, -1])}, 1, ("0",), [MISSING]),
        ({"x": BYTES, "label": pa.array([float("nan"), 2.0])}, 1, ("2",), [MISSING]),
        ({"x": BYTES, "label": pa.array(["a", None])}, 1, ("a",), [MISSING]),
        ({"x": BYTES, "label": pa.array([0.5, 2.0])}, 1, (), ["labels are not used: column label has fractions"]),
        ({"x": BYTES, "label": pa.array([10**12, 20200101])}, 1, ("20200101", "1000000000000"), []),
        ({"x": BYTES, "labels": pa.array([["b", "a"], []])}, 1, ("b|a", "|"), []),
        (
            {"jpg": STRUCT, "image": BYTES, "coarse_label": pa.array([0, 0]), "fine_label": pa.array([1, 0])},
            1,
            ("0", "1"),
            [
                "columns of images: image is read, jpg not; --data.image-column NAME for another",
                "columns of labels: fine_label, coarse_label; fine_label is used",
            ],
        ),
    ],
)
def test_columns_are_found_by_name_and_type(
    tmp_path: Path, content: dict[str, Any], first: int, classes: tuple[str, ...], notes: list[str]
) -> None:
    source = opened(write(tmp_path / "a.parquet", pa.table(content)))
    assert (int(source[0].image[0, 0, 0]), source.classes, list(source.notes)) == (first, classes, notes)
    assert (source.label(0) >= 0 or source.label(1) >= 0) == bool(classes)


def test_a_column_of_images_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"left": BYTES, "right": STRUCT, "views": pa.array([[png(5)], []]), "label": TEXT}
    folders = [write(tmp_path / "a/0.parquet", pa.table(content)), save_to_disk(tmp_path / "b", pa.table(content))]
    for path in folders:
        digests = set()
        for column, first in (("left", 1), ("right", 3)):
            source = open_source(str(path), 1, options=ReadOptions(image_column=column))
            assert (values(source), source.classes) == ([first, first + 1], ("ant", "dog"))
            digests.add(source.fingerprint())
            assert smalti(["check", str(path), "--data.image-column", column]) == 0
            assert f"columns of images: {column} is read, " in capsys.readouterr().out
        assert len(digests) == 2
        for column, message in (("rigth", "has no column rigth of images; did you mean 'right'"), ("views", "several")):
            with pytest.raises(DataError, match=message):
                open_source(str(path), 1, options=ReadOptions(image_column=column))


def test_the_usual_column_by_its_name_is_the_same_data(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.parquet", pa.table({"image": BYTES, "depth": STRUCT})))
    usual, named, other = (
        open_source(path, 1, options=ReadOptions(image_column=column)).fingerprint()
        for column in ("", "image", "depth")
    )
    assert usual == named != other


def test_columns_are_found_by_the_features_written_into_the_file(tmp_path: Path) -> None:
    content = pa.table({"image": BYTES, "photo": STRUCT, "label": pa.array([7, 7]), "kind": pa.array([0, 1])})
    kinds = {"photo": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    source = opened(write(tmp_path / "a.parquet", content.replace_schema_metadata(features(**kinds))))
    assert (values(source), source.classes, source[1].label) == ([3, 4], ("no", "yes"), 1)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 3}}}', b"\xff"])
def test_features_that_are_none_are_passed_over(tmp_path: Path, text: bytes) -> None:
    source = opened(write(tmp_path / "a.parquet", table([5], {b"huggingface": text})))
    assert (values(source), source.classes) == ([5], ("2",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pa.table({"image": ["a.png"], "n": [1]}),
            "no images in .*; no column holds the bytes of image files; the columns are: "
            r"image \(string\), n \(int64\); write the bytes of the files into a column 'image'",
        ),
        (
            pa.table({"a": BYTES, "b": BYTES}),
            "it is not clear which images of .* are meant; several columns hold them: a, b; "
            "--data.image-column a chooses one",
        ),
        (
            pa.table({"images": pa.array([[{"bytes": png(), "path": ""}]], pa.list_(IMAGE))}),
            "cannot read the images of .*; column images has several images in a row, and an image is a row; "
            "write a row for each of them: docs/own-data.md shows how",
        ),
        (pa.table({}), "the columns are: none"),
        (table([]), "no images in .*; the table has no rows; check the path"),
        (
            pa.table({"image": pa.array([{"bytes": None, "path": "/etc/passwd"}], IMAGE)}),
            "no images in .*; column image has no bytes in 1 rows; tables that hold only the paths of files cannot "
            "be read; write it anew with Dataset.save_to_disk or push_to_hub, which put the images in",
        ),
        (
            table([0]).set_column(1, "label", pa.array([3])),
            r"cannot read the labels of .*a\.parquet, column label; label 3 is out of range; class numbers are 0 to 2",
        ),
    ],
)
def test_tables_that_cannot_be_used_say_why(tmp_path: Path, content: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(write(tmp_path / "a.parquet", content))


def test_more_classes_than_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CLASSES", 1)
    with pytest.raises(DataError, match=r"column label; more than 1 different ones; is this a column of labels\?"):
        opened(write(tmp_path / "a.parquet", pa.table({"x": BYTES, "label": TEXT})))


def test_files_that_are_different_tables_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", table([0]))
    write(tmp_path / "1.parquet", pa.table({"x": BYTES, "label": TEXT}))
    cause = "its columns are x and label, not image and label"
    with pytest.raises(DataError, match=rf"1\.parquet is another table than the first; {cause}"):
        opened(tmp_path / "{0..1}.parquet")


def test_bad_cells_are_bad_images(tmp_path: Path) -> None:
    cells: list[Any] = [{"bytes": png(), "path": ""}, None, {"bytes": None, "path": "/etc/passwd"}]
    cells.append({"bytes": b"x", "path": ""})
    source = opened(write(tmp_path / "a.parquet", pa.table({"image": pa.array(cells, IMAGE)})))
    empty = "the cell is empty, or holds the path of a file without its bytes"
    for position, cause in [(1, empty), (2, empty), (3, "")]:
        with pytest.raises(DataError, match=rf"cannot read .*a\.parquet:{position}; {cause}"):
            source[position]
    assert source.read(3) == b"x"
    found = [try_read(source.read, position) for position in (3, 1, 0, 3)]
    assert (found[0], found[2], found[3]) == (b"x", png(), b"x")
    assert isinstance(found[1], DataError)
    with pytest.raises(IndexError):
        source.read(4)


def test_a_cell_above_the_limit_of_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.data.datasets.tables.MAX_BYTES", 2 << 20)
    source = opened(write(tmp_path / "a.parquet", pa.table({"image": [bytes(3 << 20)]})))
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet:0; 3 MiB; at most 2"):
        source.read(0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are begun."""
    seen: list[int] = []
    batches = Parquet._batches
    monkeypatch.setattr(Parquet, "_batches", lambda self, group, rows: seen.append(group) or batches(self, group, rows))
    return seen


@pytest.mark.parametrize("order", [range(40), [*range(39, -1, -1)], [39, 0, 20, 21, 5, 39, 38, 13] * 2])
def test_large_row_groups_are_read_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Sequence[int]
) -> None:
    path = write(tmp_path / "a.parquet", table(range(40)), 17)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 500)
    source = opened(path)
    assert max(group.step for group in source._groups) < 10  # type: ignore[attr-defined]
    assert [source.read(position) for position in order] == [png(value) for value in order]
    assert [source.name(position) for position in (0, 18, 39)] == [f"{path}:{row}" for row in (0, 18, 39)]


def test_every_row_group_is_decoded_once_where_rows_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    monkeypatch.setattr(parquet, "_SLIM_BYTES", 0)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 500)
    source = opened(write(tmp_path / "a.parquet", table(range(40)), 17))
    assert values(source) == list(range(40))
    assert decoded == [0, 1, 2]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(source.read, range(40))) == [png(value) for value in range(40)]


def test_little_of_a_file_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 500)
    source = opened(write(tmp_path / "a.parquet", table(range(40))))
    assert values(source) == list(range(40))
    assert len(source._kept) == 4  # type: ignore[attr-defined]


def test_an_interrupted_read_leaves_the_right_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", table(range(40)), 10)
    source = opened(tmp_path)
    assert int(source[0].image[0, 0, 0]) == 0

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "image_pages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            source.read(20)
    assert int(source[20].image[0, 0, 0]) == 20


def test_threads_get_the_right_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 500)
    source = opened(write(tmp_path / "a.parquet", table(range(60)), 20))
    order = [(7 * n) % 60 for n in range(600)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(source.read, order)) == [png(value) for value in order]


@pytest.mark.parametrize("memory", ["stream", "auto"])
def test_rows_are_never_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    monkeypatch.setattr("smalti.data.load.usable_memory", lambda: 0)
    path = write(tmp_path / "a.parquet", table(range(9)))
    message = (
        r"cannot stream .*a\.parquet; Parquet files and addresses are read in order only; make a fast copy once: "
        r"smalti prepare DATA --out SHARDS; or use --data\.memory resident"
    )
    with pytest.raises(DataError, match=message):
        Data(str(path), channels=1, side=4, memory=memory).open(Log())
    assert len(Data(str(path), channels=1, side=4, memory="resident").open(Log()).train) > 4


def test_a_source_is_sent_without_what_it_has_decoded(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", table([n % 256 for n in range(900)]), 300))
    assert source.read(4) == png(4)
    sent = pickle.dumps(source)
    assert len(sent) < 6000
    again = pickle.loads(sent)
    assert (again.read(4), again.read(899)) == (png(4), png(899 % 256))


def test_damage_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(range(30)), 10)
    source, good = opened(path), path.read_bytes()
    path.write_bytes(good[:200])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet:13; damaged: "):
        source.read(13)
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet; damaged: .*; check the path"):
        opened(path)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet:13; No such file or directory"):
        source.read(13)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = write(tmp_path_factory.mktemp("fuzz") / "a.parquet", table(range(12)), 5)
    return path, path.read_bytes()


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_is_anything_but_a_data_error(good: tuple[Path, bytes], changes: list[tuple[int, int]]) -> None:
    path, content = good
    data = bytearray(content)
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        source = Parquet(LocalFiles([path]), 1)
        images = [try_read(source.read, position) for position in range(len(source))]
    except DataError:
        return
    assert len(images) == len(source) > 0
    assert all(isinstance(image, bytes | DataError) for image in images)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", ("train", "data")),
        ("data/train-00000-of-00002-0f2a.parquet", ("train", "data")),
        ("train-00000-of-00001.parquet", ("train", ".")),
        ("cifar100/extra-0-of-1.parquet", ("extra", "cifar100")),
        ("default/train/0000.parquet", ("train", "default")),
        ("a/partial-train/0000.parquet", ("train", "a")),
        ("test.parquet", ("test", ".")),
        ("my_val_2.parquet", ("validation", ".")),
        ("attest/trains.parquet", ("", "")),
        ("year=2020/part-0.parquet", ("", "")),
    ],
)
def test_the_split_a_file_belongs_to(name: str, split: tuple[str, str]) -> None:
    assert split_of(Path(name)) == split


@pytest.mark.parametrize(
    ("names", "read", "note"),
    [
        (["a.parquet", "b/c.parquet"], [0, 1], ""),
        (["test.parquet"], [0], ""),
        (["train.parquet", "test.parquet", "x.parquet"], [0], "; there are also: files of no split, test"),
        (
            ["a/train/1.parquet", "a/train/0.parquet", "a/val/0.parquet"],
            [1, 0],
            "train is learned from, val is what results are of",
        ),
    ],
)
def test_the_files_of_a_folder_that_are_read(tmp_path: Path, names: list[str], read: list[int], note: str) -> None:
    for value, name in enumerate(names):
        write(tmp_path / name, table([value]))
    source = opened(tmp_path)
    assert values(source) == read
    assert "".join(source.notes).endswith(note)
    assert bool(source.notes) == bool(note)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a/train-0-of-1.parquet", "b/train-0-of-1.parquet"],
            "several data sets in .*; there are 'a', 'b'; give the folder of one",
        ),
        (
            ["test-0-of-1.parquet", "extra-0-of-1.parquet"],
            "several splits in .*; none is called 'train'; there are: extra, test; "
            "give one of them, as in --data .*test-0-of-1.parquet",
        ),
        (["notes.txt"], "no images in .*; no file there has an image's extension"),
    ],
)
def test_a_folder_that_does_not_say_what_is_meant(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write(tmp_path / name, table([1]))
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_links_out_of_a_folder_are_followed_only_when_asked(tmp_path: Path) -> None:
    """The hub's own cache is made of such links."""
    target = write(tmp_path / "blobs/0123", table([7]))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/train-0-of-1.parquet").symlink_to(target)
    with pytest.raises(DataError, match=r"1 links lead out of the folder: follow them with --data.follow-links all"):
        opened(tmp_path / "snapshot")
    assert values(open_source(str(tmp_path / "snapshot"), 1, options=ReadOptions(follow_links="all"))) == [7]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/data").symlink_to(write(tmp_path / "more/a.parquet", table([8])).parent)
    assert values(open_source(str(tmp_path / "linked"), 1, options=ReadOptions(follow_links="all"))) == [8]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", table([1]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"cannot open .*a\.parquet; pyarrow is not installed; pip install 'smalti\[data\]'"
    with pytest.raises(DataError, match=message):
        opened(path)


def test_pyarrow_is_imported_only_when_it_is_needed() -> None:
    program = "import sys, smalti.data.datasets.open; print({'pyarrow', 'fsspec', 'aiohttp'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "set()", run.stderr


MILLION = """
import resource, sys
from pathlib import Path
from smalti.data.datasets.parquet import Parquet
from smalti.data.datasets.data_files import LocalFiles
import pyarrow.parquet

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = Parquet(LocalFiles([Path(sys.argv[1])]), 3)
assert len(source) == 1_000_000 and source.read(999_999) == b"x" * 40 and int(source.labels[999_999]) == 999
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_million_rows_cost_less_than_150_megabytes(tmp_path: Path) -> None:
    labels = pa.array(np.arange(1_000_000) % 1000)
    images = pa.repeat(pa.scalar(b"x" * 40), 1_000_000)
    path = write(tmp_path / "a.parquet", pa.table({"image": images, "label": labels}), 1000)
    run = subprocess.run([sys.executable, "-c", MILLION, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kilobytes = int(run.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 150_000


def test_classes_of_the_features_need_not_all_occur(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", table([1, 1])))
    assert (source.classes, source[0].label) == (("cat", "dog", "emu"), 1)


def test_i18_an_image_in_many_rows_is_in_memory_once(tmp_path: Path) -> None:
    """877 kB with one image 20 000 times asked for 17 GB."""
    content, rows = np.random.default_rng(0).bytes(400_000), 20_000
    indices, once = pa.array(np.zeros(rows, np.int32)), pa.array([content])
    flat = pa.DictionaryArray.from_arrays(indices, once)
    nested = pa.StructArray.from_arrays([flat], ["bytes"])
    for name, column in (("a", flat), ("b", nested)):
        path = write(tmp_path / f"{name}.parquet", pa.table({"image": column}), rows)
        before = pa.total_allocated_bytes()
        source = opened(path)
        assert all(source.read(position) == content for position in (0, 1500, 9999, 19_999))
        assert pa.total_allocated_bytes() - before < 20_000_000


def test_i18_a_batch_has_few_rows_whatever_the_file_says_of_its_size(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", table([n % 7 for n in range(3000)]), 3000))
    assert isinstance(source, Parquet)
    assert max(group.step for group in source._groups) == parquet.BATCH_ROWS
    assert values(source)[-1] == 2999 % 7


def test_i18_an_image_above_the_limit_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"image": pa.array([bytes(5000)])}))
    source = opened(path)
    assert isinstance(source, Parquet)
    source._kept.clear()
    monkeypatch.setattr(parquet_pages, "MAX_BYTES", 1000)
    monkeypatch.setattr(Parquet, "_batches", lambda *_: pytest.fail("it is unpacked"))
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet:0; a page of 0\.0 MiB would be 0 MiB .*; at most 0"):
        source.read(0)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Small files with a large cell among small ones, of images or of labels; and what is said of each."""
    folder = tmp_path_factory.mktemp("hostile")
    large, few = [png(), bytes(100 << 20), png()], [png(0), png(1), png(2)]
    text = pa.array(["x" * (40 << 20), "a", "b"])
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array(["x" * 30_000]))
    files = {
        "page": ({"image": large}, False, "page.parquet:0; a page of 0.0 MiB would be 100 MiB unpacked; at most 50"),
        "dictionary": ({"image": large}, True, "dictionary.parquet:0; a page of 0.0 MiB would be 100 MiB unpacked;"),
        "label": ({"image": few, "label": text}, True, "column label has a page of 40960 KiB for 3 values: too large"),
        "names": ({"image": [png()] * 3000, "label": names}, True, "column label has a page of 29 KiB for 1 values"),
    }
    for name, (columns, dictionary, _) in files.items():
        path = folder / f"{name}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=dictionary)
    return {folder / f"{name}.parquet": message for name, (_, _, message) in files.items()}


PEAK = """
import resource, sys
from smalti.core.errors import DataError
from smalti.data.datasets.open import open_source
from smalti.data.datasets import parquet_pages
import pyarrow.parquet

parquet_pages.MAX_BYTES = 50 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_source(path, 1).read(0)
    except DataError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_i18_a_small_file_with_a_large_cell_is_refused_in_little_memory(hostile: dict[Path, str]) -> None:
    assert all(path.stat().st_size < 100_000 for path in hostile)
    command = [sys.executable, "-c", PEAK, *map(str, hostile)]
    *errors, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for error, message in zip(errors, hostile.values(), strict=True):
        assert message in error
    assert int(peak) // (1024 if sys.platform == "darwin" else 1) < 25_000


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("struct", [True, False])
def test_the_pages_of_what_arrow_writes(tmp_path: Path, version: Any, dictionary: bool, struct: bool) -> None:
    content = table([n % 9 for n in range(70)])
    if not struct:
        content = content.set_column(0, "image", content["image"].combine_chunks().field("bytes"))
    path = tmp_path / "a.parquet"
    options = {"use_dictionary": dictionary, "data_page_version": version, "row_group_size": 40, "data_page_size": 100}
    options["write_statistics"] = False
    pq.write_table(content, path, compression="gzip", write_batch_size=7, **options)
    with path.open("rb") as file:
        found = parquet_pages.chunks(file, "image.bytes" if struct else "image")
        for group, (chunk,) in enumerate(found):
            about = pq.ParquetFile(path).metadata.row_group(group).column(0)
            assert (chunk.start, chunk.length) == (
                about.dictionary_page_offset or about.data_page_offset,
                about.total_compressed_size,
            )
            pages = list(parquet_pages.image_pages(file, chunk, "a"))
            assert sum(page.values for page in pages if not page.is_dictionary) == about.num_values
            assert [page.is_dictionary for page in pages] == [dictionary, *[False] * (len(pages) - 1)]
            assert 0 < about.total_uncompressed_size - sum(page.unpacked for page in pages) < 100 * len(pages)
    assert len(found) == 2
    assert values(opened(path)) == [n % 9 for n in range(70)]


def test_images_that_share_what_they_begin_with_are_decoded_one_by_one(tmp_path: Path) -> None:
    """A page of 1 MB that would be 60 MB in one batch."""
    path, image = tmp_path / "a.parquet", b"x" * 1_000_000
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"image": [image] * 60}), path, **options)
    source = opened(path)
    before = pa.total_allocated_bytes()
    assert all(source.read(position) == image for position in range(0, 60, 10))
    assert pa.total_allocated_bytes() - before < 20_000_000
