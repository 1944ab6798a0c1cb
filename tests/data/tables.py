"""Tables of images as the tests write them: in the layout of Hugging Face datasets, by pyarrow alone."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (5, 4), value).save(file, "png")
    return file.getvalue()


def features(**kinds: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}


CATS = features(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": ["cat", "dog", "emu"]})


def table(values: Sequence[int], metadata: dict[bytes, bytes] | None = CATS) -> pa.Table:
    """A row for each value: an image of that grey, labelled with the remainder by 3."""
    images = pa.array([{"bytes": png(value), "path": f"{value}.png"} for value in values], IMAGE)
    labels = pa.array([value % 3 for value in values], pa.int64())
    return pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)


def write(path: Path, content: pa.Table, rows: int | None = None) -> Path:
    """A Parquet file with `rows` rows in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=rows)
    return path


def write_arrow(path: Path, content: pa.Table, rows: int = 4, compression: str | None = None) -> Path:
    """An Arrow stream with `rows` rows in a record batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema, options=options) as stream:
        stream.write_table(content, rows)
    return path


def save_to_disk(folder: Path, *parts: pa.Table, **state: Any) -> Path:
    """What `Dataset.save_to_disk` writes."""
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_arrow(folder / name, part)
    described = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(described | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder
