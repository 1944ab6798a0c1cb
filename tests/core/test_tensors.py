"""Files of tensors are believed within bounds only. Cases B14 and B15 of the list."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from smalti.core.tensors import MAX_HEADER, from_safetensors, no_weights, read_tensors

FOUR = bytes(16)


def file_of(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def described(**tensors: tuple[str, list[int], list[int]]) -> bytes:
    """A header as safetensors writes it."""
    return json.dumps(
        {n: dict(zip(("dtype", "shape", "data_offsets"), t, strict=True)) for n, t in tensors.items()}
    ).encode()


def both_refuse(data: bytes, path: Path) -> str:
    """Read from memory and from a file: the same reason."""
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r".") as from_memory:
        from_safetensors(data)
    with pytest.raises(ValueError, match=r".") as from_file:
        read_tensors(path)
    reason = str(from_memory.value)
    assert str(from_file.value) == reason or (reason + str(from_file.value)).count("Error while deserializing") == 2
    return reason


def test_what_is_sound_comes_back(tmp_path: Path) -> None:
    given = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}
    (tmp_path / "a").write_bytes(save(given))
    for found in (from_safetensors(save(given)), read_tensors(tmp_path / "a")):
        assert found.keys() == given.keys()
        assert all(torch.equal(value, given[name]) for name, value in found.items())
    assert from_safetensors(save({})) == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is no safetensors file"),
        (b"abc", "it is no safetensors file"),
        (file_of(b"[1]"), "it is no safetensors file"),
        (file_of(b"{}", length=2**63), "its header claims 9223372036854775808 bytes, of 10 in the file"),
        (file_of(b"{}", length=3), "its header claims 3 bytes, of 10 in the file"),
        (file_of(b"{" + b" " * 50), "Error while deserializing"),
        (file_of(b'{"a":' * 10_000), "Error while deserializing"),
        (file_of(described(a=("F32", [4], [0, 16])), FOUR[:15]), "Error while deserializing"),
        (file_of(described(a=("F32", [4], [0, 16])), FOUR + b"x"), "Error while deserializing"),
        (file_of(described(a=("F32", [4], [0, 16]), b=("F32", [4], [0, 16])), FOUR), "Error while deserializing"),
        (file_of(described(a=("F32", [4], [16, 32])), FOUR), "Error while deserializing"),
        (file_of(described(a=("F32", [4], [16, 0])), FOUR), "Error while deserializing"),
        (file_of(described(a=("F32", [-4], [0, 16])), FOUR), "Error while deserializing"),
        (file_of(described(a=("F32", [2**40, 2**40], [0, 16])), FOUR), "Error while deserializing"),
        (file_of(described(a=("OBJECT", [4], [0, 16])), FOUR), "Error while deserializing"),
        (b"<!DOCTYPE html><html>not found", "it looks like a web page, not like weights"),
        (b"\n\n<html>", "it looks like a web page, not like weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it looks like a Git LFS pointer, not like"),
    ],
)
def test_b14_b15_what_is_not_sound_is_refused_with_the_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in both_refuse(data, tmp_path / "a.safetensors")


def test_b14_a_header_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write((100 << 20).to_bytes(8, "little") + b"{")
        file.truncate(200 << 20)  # zeros that take no space
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its header claims 104857600 bytes, of 209715200 in the file and 8388608"):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_HEADER
    finally:
        tracemalloc.stop()


def test_b14_a_hundred_thousand_tensors_are_too_many(tmp_path: Path) -> None:
    one = b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(one % number for number in range(100_000)) + b"}"
    assert len(header) < MAX_HEADER
    assert both_refuse(file_of(header), tmp_path / "a") == "it has 100000 tensors, and at most 20000 are read"


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises((ValueError, OSError), match=r"no ordinary file"):
            read_tensors(place)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none")


def test_what_files_often_are_in_truth() -> None:
    assert no_weights(b"  <html>") == "it looks like a web page, not like weights"
    assert no_weights(b"PK\x03\x04") == no_weights(b"") == ""
