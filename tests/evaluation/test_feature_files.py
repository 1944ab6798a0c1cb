"""Files of features: what others read in them, and what happens to damaged ones."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smalti.core.errors import DataError
from smalti.evaluation.feature_files import Part, Row, open_features, text_of, write_features

ABOUT = {"layer": 3, "pooling": "mean"}
ROWS = [Row(0, "a.jpg", "cat"), Row(2, 'b, "quoted"\nof two lines.jpg', ""), Row(3, "é.jpg", "0")]
FEATURES = np.arange(6, dtype=np.float32).reshape(3, 2) / 3
KINDS = ("npy", "parquet")


def parts() -> Iterator[Part]:
    yield Part(ROWS[:2], FEATURES[:2])
    yield Part([], FEATURES[:0])
    yield Part(ROWS[2:], FEATURES[2:])


@pytest.fixture(params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"f.{request.param}"
    write_features(path, parts, 2, ABOUT)
    return path


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_what_was_written_is_read_in_pieces(written: Path, size: int, start: int) -> None:
    found = open_features(written)
    assert (found.count, found.width, found.about) == (3, 2, ABOUT)
    chunks = list(found.chunks(size, start))
    assert all(1 <= len(chunk) <= size for chunk in chunks)
    assert torch.equal(torch.cat([torch.empty(0, 2), *chunks]), torch.from_numpy(FEATURES[start:]))
    assert [found.row(number) for number in range(3)] == ROWS


def test_numpy_and_csv_read_it(tmp_path: Path) -> None:
    write_features(tmp_path / "f.npy", parts, 2, ABOUT)
    assert np.array_equal(np.load(tmp_path / "f.npy"), FEATURES)
    with open(tmp_path / "f.rows.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [Row(int(line["position"]), line["key"], line["label"]) for line in lines] == ROWS
    assert json.loads((tmp_path / "f.about.json").read_text()) == ABOUT


def test_pyarrow_reads_it(tmp_path: Path) -> None:
    write_features(tmp_path / "f.parquet", parts, 2, ABOUT)
    table = pq.read_table(tmp_path / "f.parquet")
    assert [field.name for field in table.schema] == ["position", "key", "label", "features"]
    assert table["label"].to_pylist() == ["cat", None, "0"]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[2]"
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), FEATURES)


def test_names_that_are_not_utf_8_are_escaped() -> None:
    assert text_of("caf\udce9.jpg") == "caf\\xe9.jpg"
    assert text_of("café.jpg") == "café.jpg"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_features(tmp_path / f"{name}.{kind}", parts, 2, ABOUT)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_features(path)
    assert "smalti embed" in str(caught.value) or "pip install" in str(caught.value)
    return str(caught.value)


def test_damaged_and_foreign_files_are_refused_in_one_line(written: Path, tmp_path: Path) -> None:
    assert "holds no features" in refused(tmp_path / "f.txt")
    assert "No such file" in refused(tmp_path / f"none{written.suffix}")
    whole = written.read_bytes()
    for damaged in (b"", whole[:-5], b"garbage" * 40, whole[:100]):
        written.write_bytes(damaged)
        assert f"{written}" in refused(written)


def test_features_without_their_rows_or_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    write_features(path, parts, 2, ABOUT)
    (tmp_path / "f.rows.csv").write_text("position,key,label\n0,a,\n")
    assert "f.rows.csv has 1 lines for 3 rows" in refused(path)
    (tmp_path / "f.rows.csv").write_text("name\na\n")
    assert "f.rows.csv does not begin with position,key,label" in refused(path)
    np.save(path, FEATURES.astype(np.float64))
    assert "no array of n x F float32" in refused(path)
    (tmp_path / "f.about.json").write_text("[")
    assert "f.npy" in refused(path)


def test_a_table_of_others_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"features": [[1.0, 2.0]]}), tmp_path / "f.parquet")
    assert "holds no features of smalti" in refused(tmp_path / "f.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_finished_is_not_there(kind: str, tmp_path: Path) -> None:
    def broken() -> Iterator[Part]:
        yield from parts()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / f"f.{kind}", broken, 2, ABOUT)
    assert not (tmp_path / f"f.{kind}").exists()


@pytest.mark.parametrize("line", ["0,a", "0,a,b,c", "x,a,b", "-1,a,b", "0,a\0b,c", "", f"0,{'a' * 200_000},b"])
def test_absurd_lines_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    write_features(path, parts, 2, ABOUT)
    (tmp_path / "f.rows.csv").write_text("position,key,label\n" + f"{line}\n" * 3)
    refused(path)


def test_a_description_that_is_too_deep_and_a_pipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    write_features(path, parts, 2, ABOUT)
    (tmp_path / "f.about.json").write_text("[" * 200_000)
    refused(path)
    os.mkfifo(tmp_path / "g.npy")
    assert "regular" in refused(tmp_path / "g.npy")


@pytest.mark.parametrize("column", ["position", "key", "label", "features"])
def test_columns_of_other_types_and_missing_ones_are_refused(column: str, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    write_features(path, parts, 2, ABOUT)
    table = pq.read_table(path)
    pq.write_table(table.drop([column]), path)
    refused(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array([1.0] * len(table))), path)
    refused(path)
