"""Files of predictions: for every image a line of CSV, or a row of Parquet.

predictions.csv          position, key, label and what is predicted
predictions.about.json   what the predictions are

predictions.parquet      the same columns (label null: none); what they are in its metadata
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from smalti.core.errors import DataError
from smalti.core.files import write_file, write_json
from smalti.core.stored import parse_object, read_object
from smalti.data.datasets.labels import SEPARATOR
from smalti.evaluation.feature_files import PARQUET, Part, Row, sidecar_path, text_of

CSV = ".csv"
_ABOUT = "about.json"

Column: TypeAlias = Int[np.ndarray, "m"] | Float[np.ndarray, "m"] | list[str] | list[str | None]
Columns: TypeAlias = dict[str, Column]
"""The values of m consecutive rows, by the name of their column."""


def write_predictions(path: Path, parts: Callable[[], Iterable[Columns]], about: dict[str, Any]) -> None:
    """Write a file of predictions; of several files the one at `path` comes last.

    Args:
        path: its suffix says which kind.
        parts: makes all rows, in order, in one part at least.
        about: what the predictions are, as JSON values.

    Raises:
        OutputError: it cannot be written.
    """
    if path.suffix == PARQUET:
        write_file(path, lambda file: _fill_parquet(file, parts(), about))
        return
    write_json(sidecar_path(path, _ABOUT), about)
    write_file(path, lambda file: _fill_csv(file, parts()))


def read_about(path: Path) -> dict[str, Any]:
    """What the predictions in a file are.

    Raises:
        DataError: it is not known.
    """
    try:
        if path.suffix != PARQUET:
            return read_object(sidecar_path(path, _ABOUT), follow=True)
        import pyarrow.parquet as pq

        return parse_object(pq.read_schema(path).metadata[b"smalti"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "choose another --out, or remove it"
        raise DataError(f"{path} is there, and no file of smalti predict", cause=str(error), fix=fix) from error


def row_columns(rows: Iterable[Row]) -> Columns:
    """Which images rows are of."""
    some = list(rows)
    return {
        "position": np.array([row.position for row in some], np.int64),
        "key": [row.key for row in some],
        "label": [row.label or None for row in some],
    }


def class_columns(part: Part, classes: tuple[str, ...], top: int, every: bool) -> Columns:
    """The `top` most likely classes of images and their probabilities, which of all classes add up to 1.

    Args:
        part: rows of logits over the classes.
        every: whether each class has a column, `p_` and its name.
    """
    logits = part.features.astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    shares /= shares.sum(1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    columns = row_columns(part.rows)
    for place in range(order.shape[1]):
        suffix = f"_{place + 1}" if place else ""
        columns[f"predicted{suffix}"] = [text_of(classes[number]) for number in order[:, place].tolist()]
        columns[f"probability{suffix}"] = np.take_along_axis(shares, order, 1)[:, place]
    return columns | (every_class(shares, classes, "p_") if every else {})


def label_columns(part: Part, labels: tuple[str, ...], threshold: float, every: bool) -> Columns:
    """All labels of images that are as probable as `threshold`, the most probable first, with their probabilities.

    Args:
        part: rows of logits, each of one label.
        every: whether each label has a column, `p_` and its name.
    """
    shares = 1 / (1 + np.exp(-part.features.astype(np.float64).clip(-500, 500)))
    named, told = list[str](), list[str]()
    for row in shares:
        order = [number for number in np.argsort(-row, kind="stable").tolist() if row[number] >= threshold]
        named.append(SEPARATOR.join(text_of(labels[number]) for number in order))
        told.append(SEPARATOR.join(f"{row[number]:.6g}" for number in order))
    columns = row_columns(part.rows)
    columns |= {"predicted": named, "probability": told}
    return columns | (every_class(shares, labels, "p_") if every else {})


def every_class(values: Float[np.ndarray, "m classes"], classes: tuple[str, ...], prefix: str) -> Columns:
    """A column for each class, named by `prefix` and its name."""
    return {f"{prefix}{text_of(name)}": values[:, number] for number, name in enumerate(classes)}


def _fill_csv(file: BinaryIO, parts: Iterable[Columns]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    for number, columns in enumerate(parts):
        if number == 0:
            lines.writerow(columns)
        lines.writerows(zip(*map(_shown, columns.values()), strict=True))
    text.detach()  # flushes it, and leaves the file open


def _shown(column: Column) -> list[Any]:
    if isinstance(column, list):
        return list(column)
    return [f"{value:.6g}" if isinstance(value, float) else value for value in column.tolist()]


def _fill_parquet(file: BinaryIO, parts: Iterable[Columns], about: dict[str, Any]) -> None:
    """Every part becomes a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(column: Column) -> Any:
        return pa.string() if isinstance(column, list) else pa.float32() if column.dtype.kind == "f" else pa.int64()

    rest = iter(parts)
    first = next(rest)
    schema = pa.schema([(name, kind(column)) for name, column in first.items()], {"smalti": json.dumps(about)})
    with pq.ParquetWriter(file, schema) as writer:
        for columns in chain([first], rest):
            arrays = [pa.array(column, kind(column)) for column in columns.values()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
