"""Common code for Parquet and Arrow files: an image is a cell of a column, named by its file and row."""

import hashlib
import importlib.util
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smalti.core.config import did_you_mean
from smalti.core.errors import DataError
from smalti.core.stored import parse_object
from smalti.data.datasets.data_files import DataFiles
from smalti.data.datasets.dataset import StoredDataset
from smalti.data.datasets.label_columns import LABEL_COLUMNS
from smalti.data.datasets.labels import MAX_CLASSES, NONE, SEPARATOR, Classes, missing_note, resolve
from smalti.data.datasets.names import LeftOut
from smalti.data.decode import MAX_BYTES

TRAIN = "train"
IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")


class Columns(NamedTuple):
    """The columns to read.

    Attributes:
        classes: the class names in the schema; if empty, classes come from the values.
        asked: the column of images, where it is not the one that is read without being asked for.
    """

    image: str
    is_struct: bool
    label: str | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    no_labels: str = ""
    asked: str = ""

    @property
    def leaf(self) -> str:
        """The name of the column or struct field that holds the bytes of the images."""
        return f"{self.image}.bytes" if self.is_struct else self.image


class TableDataset(StoredDataset):
    """Images in the rows of several files."""

    columns: Columns

    def __init__(self, places: DataFiles, channels: int) -> None:
        self.places, self.channels = places, channels
        self.left_out = LeftOut()

    @abstractmethod
    def place(self, index: int) -> tuple[int, int]:
        """The number of an image's file, and its row in that file."""

    @abstractmethod
    def cell(self, index: int) -> Any:
        """The pyarrow scalar that holds an image."""

    @abstractmethod
    def arrays(self, column: str) -> Iterator[Any]:
        """The pyarrow arrays of a column, of all rows in order."""

    def column(self, name: str) -> list[str | None]:
        cells = (cell for array in self.arrays(name) for cell in array.to_pylist())
        return [None if cell is None or cell == "" else str(cell) for cell in cells]

    def name(self, index: int) -> str:
        file, row = self.place(index)
        return f"{self.places.names[file]}:{row}"

    def key(self, index: int) -> str:
        return self.places.relative(self.name(index))

    def read(self, index: int) -> bytes:
        try:
            cell = plain(self.cell(index))
        except DataError as error:
            raise DataError(f"cannot read {self.name(index)}", cause=error.cause or error.what) from error
        except LookupError as error:  # a damaged dictionary lacks the entry
            raise DataError(f"cannot read {self.name(index)}", cause=why(error)) from error
        if not cell.is_valid:
            cause = "the cell is empty, or holds the path of a file without its bytes"
            raise DataError(f"cannot read {self.name(index)}", cause=cause)
        buffer = cell.as_buffer()
        if buffer.size > MAX_BYTES:
            cause = f"{buffer.size >> 20} MiB; at most {MAX_BYTES >> 20}"
            raise DataError(f"cannot read {self.name(index)}", cause=cause)
        return bytes(buffer.to_pybytes())

    def fingerprint(self) -> str:
        """A digest of file names, file sizes and all labels, and of the column of images where it was asked for.

        It does not depend on where the files are stored.
        """
        files = [
            (self.places.relative(name), size) for name, size in zip(self.places.names, self.places.sizes, strict=True)
        ]
        asked = (self.columns.asked,) if self.columns.asked else ()
        digest = hashlib.sha256(repr((files, len(self), self.classes, *asked)).encode(errors="surrogateescape"))
        digest.update(b"" if self.labels is None else self.labels.astype("<i4").tobytes())
        return digest.hexdigest()


def require_column(schema: Any, column: str, name: str) -> None:
    """Raise a `DataError` if a table has no such column of names or numbers."""
    there = [field.name for field in schema if _is_label(field.type) and not _is_list(field.type)]
    if column not in there:
        fix = did_you_mean(column, there) or f"there are: {', '.join(there)[:300] or 'none'}"
        raise DataError(f"{name} has no column {column} of names or numbers", fix=fix)


def require_extra(module: str, what: str) -> None:
    """Raise a `DataError` if a library of the extra `data` is not installed; `what` is the file that needs it."""
    if importlib.util.find_spec(module) is None:
        raise DataError(f"cannot open {what}", cause=f"{module} is not installed", fix="pip install 'smalti[data]'")


def find_columns(schema: Any, name: str, asked: str = "") -> Columns:
    """Choose the columns of a pyarrow schema by the Hugging Face features in its metadata, else by name and type.

    Args:
        asked: the column of images; empty: the one that is declared to be, or has a usual name, or is the only one.

    Raises:
        DataError: no column holds the bytes of images, or several do and it is not clear which; the message names them.
    """
    features = _features(schema)
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [column for column in holding if features.get(column, {}).get("_type") == "Image"]
    images = declared or _known(holding, IMAGE_COLUMNS) or holding
    usual = (_known(images, IMAGE_COLUMNS) or (images if len(images) == 1 else [""]))[0]
    if (image := asked or usual) not in holding:
        raise _no_images(schema, name, holding, asked)
    fitting = [field.name for field in schema if field.name not in holding and _is_label(field.type)]
    classed = [column for column in fitting if _class_names(features.get(column, {}))]
    label = next(iter(_known(classed, LABEL_COLUMNS) or classed or _known(fitting, LABEL_COLUMNS)), None)
    lists = [field.name for field in schema if _holds_lists(field.type)]
    others = ", ".join(column for column in holding if column != image)[:200]
    unread = f"columns of images: {image} is read, {others} not; --data.image-column NAME for another"
    notes = [unread] if others else []
    notes += [f"column {column} has several images in a row and is not read" for column in lists]
    if len(known := _known(fitting, LABEL_COLUMNS)) > 1:
        notes.append(f"columns of labels: {', '.join(known)}; {label} is used")
    if label is None and (unfit := _known([field.name for field in schema], LABEL_COLUMNS)):
        notes.append(f"labels are not used: column {unfit[0]} is {schema.field(unfit[0]).type}, not labels")
    named = _class_names(features[label]) if label and label in classed else ()
    there = ", ".join(schema.names)[:300]
    sought = f"the columns are {there}; labels are looked for in {', '.join(LABEL_COLUMNS[:4])}, ..."
    other = image if image != usual else ""
    return Columns(image, _is_struct(schema.field(image).type), label, named, tuple(notes), sought, other)


def _no_images(schema: Any, name: str, holding: list[str], asked: str) -> DataError:
    """The error for a table without a column of images that could be read."""
    lists = [field.name for field in schema if _holds_lists(field.type)]
    if asked in lists or (lists and not holding):
        cause = f"column {asked or lists[0]} has several images in a row, and an image is a row"
        return DataError(
            f"cannot read the images of {name}",
            cause=cause,
            fix="write a row for each of them: docs/own-data.md shows how",
        )
    if asked:
        fix = did_you_mean(asked, holding) or f"there are: {', '.join(holding)[:300] or 'none'}"
        return DataError(f"{name} has no column {asked} of images", fix=fix)
    if holding:
        cause = f"several columns hold them: {', '.join(holding)[:300]}"
        fix = f"--data.image-column {holding[0]} chooses one"
        return DataError(f"it is not clear which images of {name} are meant", cause=cause, fix=fix)
    kinds = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8])
    cause = f"no column holds the bytes of image files; the columns are: {kinds[:300] or 'none'}"
    return DataError(f"no images in {name}", cause=cause, fix="write the bytes of the files into a column 'image'")


def cells(column: Any) -> Any:
    """The bytes of an image column, as a binary pyarrow array; for a struct column, its field `bytes`."""
    if not _is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


def plain(cell: Any) -> Any:
    """The scalar itself, or what one of a dictionary array stands for."""
    import pyarrow as pa

    return cell.value if isinstance(cell, pa.DictionaryScalar) else cell


class ColumnLabels:
    """Collects the values of a label column, batch by batch; -1 and null mean no label, as in Hugging Face datasets."""

    def __init__(self, columns: Columns, name: str) -> None:
        self.columns, self.name = columns, name
        self.table: dict[str, int] = {}
        self.parts: list[NDArray[np.int32]] = []
        self.fractions = False

    def add(self, column: Any) -> None:
        """Append an array of numbers or names, or of lists of them; a `DataError` if some are no class."""
        import pyarrow as pa

        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        if _is_list(column.type):
            column = pa.array(
                [None if cell is None else self._joined(cell) for cell in column.to_pylist()], pa.string()
            )
        encoded = column.dictionary_encode()
        places = [self._place(value) for value in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        self.parts.append(np.array([*places, NONE], np.int32)[indices])

    def _joined(self, cell: list[int | str | None]) -> str:
        """Several labels in one text, by name where the classes are declared."""
        texts = (self._named(one) if isinstance(one, int) else one for one in cell if one is not None)
        return SEPARATOR.join(texts) or SEPARATOR

    def _named(self, number: int) -> str:
        classes = self.columns.classes
        if classes and not 0 <= number < len(classes):
            raise self._refused(f"label {number} is out of range; class numbers are 0 to {len(classes) - 1}")
        return classes[number] if classes else str(number)

    def _place(self, value: int | float | str | None) -> int:
        """The place of a value in the table; it is added if it is new."""
        if isinstance(value, float):
            self.fractions |= not value.is_integer() and not math.isnan(value)
            value = int(value) if value.is_integer() else None
        if value is None or (value == -1 and self.columns.classes):
            return NONE
        text = self._named(value) if isinstance(value, int) else value
        if len(self.table) == MAX_CLASSES and text not in self.table:
            raise self._refused(f"more than {MAX_CLASSES} different ones; is this a column of labels?")
        return self.table.setdefault(text, len(self.table))

    def _refused(self, cause: str) -> DataError:
        return DataError(f"cannot read the labels of {self.name}, column {self.columns.label}", cause=cause)

    def build(self, separator: str) -> Classes:
        ids = np.concatenate([np.zeros(0, np.int32), *self.parts])
        declared = {name: place for place, name in enumerate(self.columns.classes)}
        if self.fractions:
            return Classes(ids, (), (f"labels are not used: column {self.columns.label} has fractions",))
        if declared and all(name in declared for name in self.table):
            numbers = np.array([*(declared[name] for name in self.table), NONE], np.int32)
            ids, names = numbers[ids], self.columns.classes
            return Classes(ids, names, missing_note(ids)) if bool((ids != NONE).any()) else Classes(ids, ())
        return resolve(ids, tuple(self.table), separator)


def choose_split(splits: Mapping[str, str], where: str) -> tuple[str, tuple[str, ...]]:
    """Choose the split to train on, of paths by name, and note the others; a `DataError` if that is not clear."""
    names = ", ".join(name or "files of no split" for name in sorted(splits)[:8])
    if TRAIN in splits and len(splits) > 1:
        others = ", ".join(name or "files of no split" for name in sorted(splits)[:8] if name != TRAIN)
        return TRAIN, (f"the split 'train' is read; there are also: {others}",)
    if len(splits) == 1:
        return next(iter(splits)), ()
    if not splits:
        raise DataError(f"no images in {where}", cause="it names no splits", fix="check the path")
    fix = f"give one of them, as in --data {splits[max(splits)]}"
    raise DataError(f"several splits in {where}", cause=f"none is called 'train'; there are: {names}", fix=fix)


def without_bytes(name: str, column: str, rows: int) -> DataError:
    """The error for a table whose image column holds no bytes in any row."""
    cause = f"column {column} has no bytes in {rows} rows; tables that hold only the paths of files cannot be read"
    fix = "write it anew with Dataset.save_to_disk or push_to_hub, which put the images in"
    return DataError(f"no images in {name}", cause=cause, fix=fix)


def why(error: Exception) -> str:
    """The error message of pyarrow or the operating system, in one line."""
    return (
        getattr(error, "strerror", None) or f"damaged: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    )


@contextmanager
def table_errors_named(name: str, fix: str = "check the path") -> Iterator[None]:
    """Raise a `DataError` that names the file for an error of the system, or of a damaged file."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise DataError(f"cannot read {name}", cause=why(error), fix=fix) from error


def _known(columns: list[str], names: tuple[str, ...]) -> list[str]:
    """The columns whose name is in `names` (ignoring case), in the order of `names`."""
    return sorted((c for c in columns if c.lower() in names), key=lambda c: names.index(c.lower()))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The Hugging Face features of the columns from the schema metadata; empty if missing or malformed."""
    try:
        features = parse_object((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """The class names of a Hugging Face feature, of one class or of a sequence of them; empty if it has none."""
    inner = feature.get("feature")
    about = inner if isinstance(inner, dict) else feature
    names = about.get("names") if about.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type) and not pa.types.is_struct(kind.field(place).type)
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_lists(kind: Any) -> bool:
    """Whether a cell holds the bytes of several images."""
    import pyarrow as pa

    return (_is_list(kind) or bool(pa.types.is_fixed_size_list(kind))) and _holds_bytes(kind.value_type)


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return True
    kind = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
