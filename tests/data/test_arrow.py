"""Hugging Face data sets on the disk: splits, indices, classes, memory maps, damage, what the library itself writes."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets.arrow import Arrow, ArrowFiles
from smalti.data.datasets.file_list import FileList
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.open import open_source
from smalti.data.reading import try_read
from smalti.runs.check import Check, main
from tests.contracts import check_dataset
from tests.data.tables import IMAGE, png, save_to_disk, table, write, write_arrow


def opened(path: Path) -> Arrow:
    source = open_source(str(path), 1)
    assert isinstance(source, Arrow)
    return source


def values(source: Arrow) -> list[int]:
    return [int(source[position].image[0, 0, 0]) for position in range(len(source))]


def test_a_data_set_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_to_disk(tmp_path / "set", table(range(10)), table(range(10, 13)))
    source = open_source(str(tmp_path / "set"), 1, Log())
    assert isinstance(source, Arrow)
    check_dataset(source)
    assert values(source) == list(range(13))
    assert (source.kind, source.classes, source.notes) == ("huggingface", ("cat", "dog", "emu"), ())
    assert [source[position].label for position in range(13)] == [position % 3 for position in range(13)]
    assert source.name(11) == f"{tmp_path}/set/data-00001-of-00002.arrow:1"
    assert source.key(3) == "data-00000-of-00002.arrow:3"
    assert [source.read(position) for position in (12, 0, 12)] == [png(12), png(0), png(12)]
    assert "index files  2/2" in capsys.readouterr().err
    result = main(Check(str(tmp_path / "set"), side=16))
    assert (result["kind"], result["readable"]) == ("huggingface", 13)


def splits(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save_to_disk(folder / name, table([number]))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    return folder


def test_of_several_splits_the_one_to_train_on_is_read(tmp_path: Path) -> None:
    source = opened(splits(tmp_path, "test", "train"))
    assert (values(source), source.notes) == ([1], ("the split 'train' is read; there are also: test",))
    assert values(opened(tmp_path / "test")) == [0]


def test_a_single_split_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    assert opened(splits(tmp_path, "test")).notes == ()


def test_several_splits_without_one_to_train_on_are_refused(tmp_path: Path) -> None:
    message = (
        f"several splits in {tmp_path}; none is called 'train'; there are: test, validation; "
        f"give one of them, as in --data {tmp_path}/validation$"
    )
    with pytest.raises(DataError, match=message):
        opened(splits(tmp_path, "validation", "test"))


def test_the_fingerprint_is_of_what_is_there_not_of_where_it_lies(tmp_path: Path) -> None:
    def fingerprint(name: str, *parts: pa.Table, **state: Any) -> str:
        return opened(save_to_disk(tmp_path / name, *parts, **state)).fingerprint()

    first = fingerprint("a", table(range(4)), table([7]))
    assert fingerprint("b", table(range(4)), table([7])) == first
    for number in range(2):
        write_arrow(tmp_path / f"{number}/i.arrow", pa.table({"indices": [number, 1]}))
    indices = {"_indices_data_files": [{"filename": "i.arrow"}]}
    others = [
        fingerprint("c", table([7]), table(range(4))),
        fingerprint("d", table(range(4)), table([8])),
        fingerprint("e", table(range(4)), table([7] * 50)),
        fingerprint("0", table([0, 0, 3]), **indices),
        fingerprint("1", table([0, 0, 3]), **indices),
    ]
    assert len({first, *others}) == 6
    source = opened(tmp_path / "0")
    assert source.length(0) == len(source.read(0))


@pytest.mark.parametrize("key", ["_indices_data_files", "_indices_files"])
def test_an_indices_mapping_is_honoured(tmp_path: Path, key: str) -> None:
    for number, rows in enumerate(([5, 0], [3])):
        write_arrow(tmp_path / f"indices-{number}.arrow", pa.table({"indices": pa.array(rows, pa.uint64())}))
    state = {key: [{"filename": "indices-0.arrow"}, {"filename": "indices-1.arrow"}]}
    source = opened(save_to_disk(tmp_path, table(range(4)), table(range(4, 8)), **state))
    assert (values(source), [source[position].label for position in range(3)]) == ([5, 0, 3], [2, 0, 0])
    assert source.key(0) == "data-00001-of-00002.arrow:1"
    sent = pickle.loads(pickle.dumps(source))
    assert values(sent) == [5, 0, 3]


@pytest.mark.parametrize("rows", [[4], [-1]])
def test_an_indices_mapping_that_leads_out_is_refused(tmp_path: Path, rows: list[int]) -> None:
    write_arrow(tmp_path / "i.arrow", pa.table({"indices": rows}))
    save_to_disk(tmp_path, table(range(4)), _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(DataError, match=r"cannot read .*i\.arrow; it selects rows beyond the 4 there are"):
        opened(tmp_path)


def test_one_arrow_file_of_either_format(tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, table([]).schema) as writer:
        writer.write_table(table(range(5)), 2)
    assert values(opened(tmp_path / "file.arrow")) == list(range(5))
    assert values(opened(write_arrow(tmp_path / "stream.arrow", table(range(5)), 2))) == list(range(5))


def test_nothing_is_copied_until_it_is_read(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", pa.table({"image": [bytes(1 << 20)] * 8, "label": list("abababab")}))
    before = pa.total_allocated_bytes()
    source = opened(path)
    assert len(source.read(7)) == 1 << 20
    assert pa.total_allocated_bytes() - before < 1 << 16


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_file_is_refused_with_advice(tmp_path: Path, compression: str) -> None:
    path = write_arrow(tmp_path / "a.arrow", pa.table({"image": [b"x" * 10_000] * 9}), compression=compression)
    message = "compressed: it cannot be read from the middle; save it without compression"
    with pytest.raises(DataError, match=rf"cannot read .*a\.arrow; damaged: {message}"):
        opened(path)


def test_bad_cells_are_bad_images(tmp_path: Path) -> None:
    cells: list[Any] = [{"bytes": png(3), "path": ""}, None, {"bytes": None, "path": "/etc/passwd"}]
    source = opened(write_arrow(tmp_path / "a.arrow", pa.table({"image": pa.array(cells, IMAGE)}), 2))
    assert source.read(0) == png(3)
    for position in (1, 2):
        cause = "the cell is empty, or holds the path of a file without its bytes"
        with pytest.raises(DataError, match=rf"cannot read .*a\.arrow:{position}; {cause}"):
            source[position]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "{", r"cannot read .*state\.json; it is not JSON: .*; save the data set again"),
        ("state.json", "[]", r"cannot read .*state\.json; it is not an object"),
        ("state.json", "{}", r"cannot read .*state\.json; it names no files; save the data set again"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "a file it names is none of its folder"),
        ("state.json", '{"_data_files": [{"filename": 3}]}', "a file it names is none of its folder"),
        ("state.json", '{"_data_files": [{"filename": "x.arrow"}]}', r"no file .*x\.arrow; it does not exist"),
        ("dataset_dict.json", '{"splits": []}', "no images in .*; it names no splits; check the path"),
        ("dataset_dict.json", '{"splits": ["../x"]}', "it names no splits"),
        ("dataset_dict.json", '{"splits": ["gone"]}', r"cannot list .*gone/state\.json; No such file"),
        ("data-00000-of-00001.arrow", "nothing", r"cannot read .*arrow; damaged: .*; check the path"),
        ("data-00000-of-00001.arrow", "", r"cannot read .*arrow; damaged: "),
    ],
)
def test_a_folder_that_cannot_be_understood_says_why(tmp_path: Path, name: str, content: str, message: str) -> None:
    save_to_disk(tmp_path, table([1]))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_files_that_are_different_tables_are_refused(tmp_path: Path) -> None:
    save_to_disk(tmp_path, table([0]), table([1]).drop_columns(["label"]))
    with pytest.raises(DataError, match=r"data-00001.* is another table than the first; its columns are different"):
        opened(tmp_path)


def test_tables_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*; the table has no rows; check the path"):
        opened(save_to_disk(tmp_path / "a", table([])))
    paths = pa.table({"image": pa.array([{"bytes": None, "path": "x.png"}], IMAGE)})
    with pytest.raises(DataError, match="column image has no bytes in 1 rows"):
        opened(save_to_disk(tmp_path / "b", paths))


def test_offsets_that_lead_out_of_the_file_are_refused(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", pa.table({"image": pa.array([b"x" * 100, b"y" * 23])}))
    offsets = np.array([0, 100, 123], np.int32).tobytes()
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, np.array([0, 100, 1 << 30], np.int32).tobytes()))
    with pytest.raises(DataError, match=r"cannot read .*a\.arrow; damaged: "):
        opened(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = write_arrow(tmp_path_factory.mktemp("fuzz") / "a.arrow", table(range(12)), 5)
    return path, path.read_bytes()


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_is_anything_but_a_data_error(good: tuple[Path, bytes], changes: list[tuple[int, int]]) -> None:
    path, content = good
    data = bytearray(content)
    for place, value in changes:
        data[place % len(data)] = value
    path.unlink()  # a map of the file as it was may still be held
    path.write_bytes(data)
    try:
        source = Arrow(ArrowFiles([path], []), 1)
        images = [try_read(source.read, position) for position in range(len(source))]
    except DataError:
        return
    assert len(images) == len(source) > 0
    assert all(isinstance(image, bytes | DataError) for image in images)


def test_threads_get_the_right_bytes(tmp_path: Path) -> None:
    source = opened(save_to_disk(tmp_path, table(range(30)), table(range(30, 60))))
    order = [(7 * n) % 60 for n in range(600)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(source.read, order)) == [png(value) for value in order]


def test_every_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    (tmp_path / "list.txt").write_text("a.png\n")
    sources = [Folder(tmp_path, 1), FileList(tmp_path / "list.txt", 1)]
    tables = [save_to_disk(tmp_path / "set", table([7])), write(tmp_path / "a.parquet", table([7]))]
    sent = pickle.dumps([*sources, *(open_source(str(path), 1) for path in tables)])
    assert len(sent) < 8000
    program = "import pickle, sys; print(*[s[0].image[0, 0, 0] for s in pickle.load(sys.stdin.buffer)])"
    run = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=False)
    assert (run.returncode, run.stdout.split()) == (0, [b"7"] * 4), run.stderr


@pytest.mark.slow
def test_what_the_library_itself_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for value in range(12):
        (tmp_path / f"{value}.png").write_bytes(png(value))
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    content = {"image": [str(tmp_path / f"{n}.png") for n in range(12)], "label": [n % 3 for n in range(12)]}
    made = datasets.Dataset.from_dict(content, features=kinds)
    made.save_to_disk(tmp_path / "disk", num_shards=3)
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(tmp_path / "dict")
    datasets.load_from_disk(tmp_path / "disk").to_parquet(tmp_path / "hub/train-00000-of-00001.parquet", batch_size=5)
    for name in ("disk", "dict", "dict/train", "hub"):
        source = open_source(str(tmp_path / name), 1)
        assert [int(source[position].image[0, 0, 0]) for position in range(12)] == list(range(12)), name
        assert (source.classes, source[5].label) == (("a", "b", "c"), 2)
    shuffled = made.shuffle(seed=0)
    shuffled.save_to_disk(tmp_path / "shuffled")
    source = opened(tmp_path / "shuffled")
    assert values(source) != sorted(values(source))
    assert [source[position].label for position in range(12)] == shuffled["label"]
