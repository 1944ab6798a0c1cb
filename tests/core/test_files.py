"""Files are whole or absent, and damage is noticed."""

import os
from pathlib import Path

import pytest

from smalti.core.errors import OutputError
from smalti.core.files import make_folder, read_folder, sha256, write_bytes, write_folder, write_json

FILES = {"model.bin": b"\x00weights\xff", "state.json": b'{"step": 7}'}


def test_write_bytes_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, step, no_space)
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin; No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_writing_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path / "file" / "a.bin", b"")


def test_write_json_ends_with_a_newline_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))


def test_a_folder_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", FILES)
    assert read_folder(tmp_path / "folder") == FILES
    assert sorted(os.listdir(tmp_path)) == ["folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", FILES | {"extra": b"x"})
    write_folder(tmp_path / "folder", FILES)
    assert read_folder(tmp_path / "folder") == FILES
    assert not (tmp_path / "folder" / "extra").exists()


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError, match="cannot write"):
        write_folder(tmp_path / "folder", FILES)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_no_flipped_byte_changes_what_is_read(tmp_path: Path, name: str) -> None:
    """Whatever byte is damaged, and however: the folder is refused, or (sizes in the manifest) reads as it was."""
    write_folder(tmp_path / "folder", FILES)
    path = tmp_path / "folder" / name
    intact = path.read_bytes()
    for position in range(len(intact)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(intact)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            found = read_folder(tmp_path / "folder")
            assert found is None or (found == FILES and name == "MANIFEST.json")
    path.write_bytes(intact)
    assert read_folder(tmp_path / "folder") == FILES


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short"])
def test_missing_and_cut_files_are_noticed(tmp_path: Path, name: str, damage: str) -> None:
    write_folder(tmp_path / "folder", FILES)
    path = tmp_path / "folder" / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: -3 if damage == "short" else 0])
    assert read_folder(tmp_path / "folder") is None


@pytest.mark.parametrize("manifest", ["[]", "[1]", "null", '{"model.bin": null}', '{"../secret": {"sha256": ""}}', "{"])
def test_a_foreign_manifest_is_no_folder_of_ours(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "model.bin").touch()
    (tmp_path / "MANIFEST.json").write_text(manifest)
    assert not read_folder(tmp_path)


def test_a_folder_that_is_not_there_reads_as_none(tmp_path: Path) -> None:
    assert read_folder(tmp_path / "nowhere") is None


def test_make_folder_proves_that_it_can_be_written(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write into"):
        make_folder(tmp_path / "file" / "c")


def test_sha256_of_the_empty_string() -> None:
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
