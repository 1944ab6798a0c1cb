"""Columns of a table: which one holds the images, which one the labels; labels to class numbers."""

import importlib.util
import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smalti.core.errors import DataError
from smalti.data.datasets.labels import MAX_CLASSES, NONE, resolve

IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "class_name", "target", "category", "coarse_label")


class Columns(NamedTuple):
    """The columns to read. `classes` are those the table names itself; without any they come from the values."""

    image: str
    is_struct: bool
    label: str | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def leaf(self) -> str:
        """The name under which the bytes of the images are stored."""
        return f"{self.image}.bytes" if self.is_struct else self.image


def require_extra(module: str, what: str) -> None:
    """Raise the one error for a library of the extra `data` that is not installed."""
    if importlib.util.find_spec(module) is None:
        raise DataError(f"cannot open {what}", cause=f"{module} is not installed", fix="pip install 'smalti[data]'")


def find_columns(schema: Any, name: str) -> Columns:
    """Choose from a pyarrow schema: by the features that Hugging Face datasets write into it, else by name and type.

    Raises:
        DataError: no column holds the bytes of images; the message says which columns there are.
    """
    features = _features(schema)
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [column for column in holding if features.get(column, {}).get("_type") == "Image"]
    images = declared or _known(holding, IMAGE_COLUMNS) or (holding if len(holding) == 1 else [])
    if not images:
        kinds = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8])
        cause = f"no column holds the bytes of image files; the columns are: {kinds[:300] or 'none'}"
        raise DataError(f"no images in {name}", cause=cause, fix=f"name it one of {', '.join(IMAGE_COLUMNS[:3])}, ...")
    fitting = [field.name for field in schema if field.name not in images and _is_label(field.type)]
    classed = [column for column in fitting if features.get(column, {}).get("_type") == "ClassLabel"]
    image = (_known(images, IMAGE_COLUMNS) or images)[0]
    label = next(iter(_known(classed, LABEL_COLUMNS) or classed or _known(fitting, LABEL_COLUMNS)), None)
    notes = [f"columns of images: {', '.join(images)}; {image} is used"] if len(images) > 1 else []
    if len(known := _known(fitting, LABEL_COLUMNS)) > 1:
        notes.append(f"columns of labels: {', '.join(known)}; {label} is used")
    if label is None and (unfit := _known([field.name for field in schema], LABEL_COLUMNS)):
        notes.append(f"labels are not used: column {unfit[0]} is {schema.field(unfit[0]).type}, not one class an image")
    classes = features[label].get("names") if label and label in classed else None
    named = tuple(map(str, classes)) if isinstance(classes, list) else ()
    return Columns(image, _is_struct(schema.field(image).type), label, named, tuple(notes))


def cells(column: Any) -> Any:
    """The bytes of an image column, as a pyarrow array of binary; of a struct its field `bytes`."""
    if not _is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


class ColumnLabels:
    """Collects the values of a label column, batch by batch; -1 and null are no label, as in Hugging Face datasets."""

    def __init__(self, columns: Columns, name: str) -> None:
        self.columns, self.name = columns, name
        self.table: dict[str, int] = {}
        self.parts: list[NDArray[np.int32]] = []

    def add(self, column: Any) -> None:
        """Append a pyarrow array of numbers or names.

        Raises:
            DataError: a number out of range, or more classes than can be.
        """
        import pyarrow as pa  # type: ignore[import-untyped]

        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        encoded = column.dictionary_encode()
        places = [self._number(value) for value in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        self.parts.append(np.array([*places, NONE], np.int32)[indices])

    def _number(self, value: int | str | None) -> int:
        if value is None or value == -1:
            return NONE
        most = len(self.columns.classes) or MAX_CLASSES
        if isinstance(value, int) and not 0 <= value < most:
            cause = f"label {value} is out of range; class numbers are 0 to {most - 1}"
            raise DataError(f"cannot read the labels of {self.name}, column {self.columns.label}", cause=cause)
        if len(self.table) == MAX_CLASSES and str(value) not in self.table:
            cause = f"more than {MAX_CLASSES} different ones; is this a column of labels?"
            raise DataError(f"cannot read the labels of {self.name}, column {self.columns.label}", cause=cause)
        return self.table.setdefault(str(value), len(self.table))

    def build(self) -> tuple[NDArray[np.int32] | None, tuple[str, ...], tuple[str, ...]]:
        """A class number an image or none at all, the classes, and what is to be said about them."""
        if self.columns.label is None or not self.parts:
            return None, (), ()
        ids, names = np.concatenate(self.parts), tuple(self.table)
        if missing := int((ids == NONE).sum()):
            return None, (), (f"labels are not used: {missing} of {len(ids)} images have none",)
        if self.columns.classes and all(name.isdecimal() for name in names):
            return np.array([int(name) for name in names], np.int32)[ids], self.columns.classes, ()
        return *resolve(ids, names), ()


def _known(columns: list[str], names: tuple[str, ...]) -> list[str]:
    """Those of the columns that are called like one of `names`, in the order of `names`."""
    return sorted((c for c in columns if c.lower() in names), key=lambda c: names.index(c.lower()))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face datasets say about the columns; nothing where that is not what it should be."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type) and not pa.types.is_struct(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
