"""Tensors in the safetensors format. Sizes in the header of a file are checked against bounds before they are used."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from smalti.core.files import FETCH, is_pointer
from smalti.core.stored import open_stored

MAX_HEADER = 2**23
"""Bytes that a header with names and shapes may have; that of the largest network here has 100 000."""
MAX_TENSORS = 20_000

_LENGTH = 8
"""Bytes before the header, which say how long it is."""
_NO_WEIGHTS = {
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*"), "an image"),
    b"%PDF": "a document",
    b"\x89HDF": "weights of another library (HDF5)",
}


def to_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a file with these tensors, by name, from whichever device; `metadata` goes into its header.

    It is to be written by `core.files`: safetensors itself makes files that their owner alone may read.
    """
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)


def from_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors in the content of a file, by name.

    Raises:
        ValueError: it is damaged, exceeds the bounds, or is no safetensors file; the text says which.
    """
    _require_sound(data[: _LENGTH + MAX_HEADER + 1], len(data))
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; the file is memory-mapped.

    Raises:
        ValueError: as in `from_safetensors`.
        OSError: it cannot be read, or is no ordinary file.
    """
    with open_stored(path, follow=True) as file:
        begin = file.read(256)
        size = os.fstat(file.fileno()).st_size
        _require_sound(begin + file.read(min(_header_length(begin), MAX_HEADER)), size)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def no_weights(begin: bytes) -> str:
    """What is said of a file that is often mistaken for weights, by its first bytes; empty for any other."""
    what = next((what for sign, what in _NO_WEIGHTS.items() if begin.lstrip().startswith(sign)), "")
    hint = f"; {FETCH}" if is_pointer(begin.lstrip()) else ""
    return f"it looks like {what}, not like weights{hint}" if what else ""


def _require_sound(begin: bytes, size: int) -> None:
    """Check the length of the header and the number of tensors against the bounds."""
    length = _header_length(begin)
    if begin[_LENGTH : _LENGTH + 1] != b"{":
        raise ValueError(no_weights(begin) or "it is no safetensors file")
    if length > min(size - _LENGTH, MAX_HEADER):
        raise ValueError(f"its header claims {length} bytes, of {size} in the file and {MAX_HEADER} that are read")
    if (count := begin.count(b'"data_offsets"')) > MAX_TENSORS:
        raise ValueError(f"it has {count} tensors, and at most {MAX_TENSORS} are read")


def _header_length(begin: bytes) -> int:
    return int.from_bytes(begin[:_LENGTH], "little")
