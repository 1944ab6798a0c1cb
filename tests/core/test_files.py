"""Files are whole or absent, and damage is noticed."""

import errno
import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from smalti.core.errors import CheckpointError, OutputError
from smalti.core.files import (
    make_folder,
    new_folder,
    remove_leftovers,
    sha256,
    write_bytes,
    write_folder,
    write_json,
)
from smalti.core.stored import is_intact, read_folder

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


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_folders_that_cannot_be_flushed_and_modes_that_cannot_be_set_stop_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """C05. As on shares of Windows, and on mounts of a cloud: os.fsync of a folder, and every chmod, are refused."""
    flush, flushed = os.fsync, list[bool]()

    def on_a_share(handle: int) -> None:
        flushed.append(is_file := stat.S_ISREG(os.fstat(handle).st_mode))
        if not is_file:
            raise OSError(error, os.strerror(error))
        flush(handle)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", on_a_share)
    monkeypatch.setattr(os, "chmod", refused)
    for content in (b"old", b"new"):
        write_bytes(tmp_path / "a" / "b.bin", content)
        write_folder(tmp_path / "folder", FILES | {"model.bin": content})
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"new"
    assert read_folder(tmp_path / "folder")["model.bin"] == b"new"
    assert {True, False} == set(flushed)


def test_a_file_that_cannot_be_flushed_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C05. Its bytes may be nowhere, other than the entry of a folder."""

    def refused(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin; Invalid argument"):
        write_bytes(tmp_path / "a.bin", b"new")


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
    """Whatever byte is damaged, and however: the folder is refused."""
    write_folder(tmp_path / "folder", FILES)
    path = tmp_path / "folder" / name
    intact = path.read_bytes()
    for position in range(len(intact)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(intact)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="folder is damaged; "):
                read_folder(tmp_path / "folder")
            assert not is_intact(tmp_path / "folder")
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
    what = "missing" if damage == "missing" else rf"has \d+ bytes, not {len(whole)}"
    cause = f"{name} (is {what}|{what})" if name != "MANIFEST.json" else "MANIFEST.json (there|cannot be understood)"
    with pytest.raises(CheckpointError, match=f"folder is damaged; .*{cause}"):
        read_folder(tmp_path / "folder")


@pytest.mark.parametrize(
    ("manifest", "cause"),
    [
        *((text, "cannot be understood") for text in ("[]", "[1]", "null", "{", '{"model.bin": null}', '{"a": 1e308}')),
        ('{"model.bin": {"sha256": ""}}', "cannot be understood"),
        ('{"model.bin": {"bytes": NaN, "sha256": ""}}', "cannot be understood"),
        ('{"model.bin": {}, "model.bin": {}}', "cannot be understood"),
        ("[" * 100_000, "cannot be understood"),
        ('{"../secret": {"bytes": 0, "sha256": ""}}', "names files elsewhere"),
    ],
)
def test_a_foreign_manifest_is_no_folder_of_ours(tmp_path: Path, manifest: str, cause: str) -> None:
    (tmp_path / "model.bin").touch()
    (tmp_path / "MANIFEST.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=f"is damaged; .*{cause}"):
        read_folder(tmp_path)


def test_a_file_that_is_much_longer_than_it_should_be_is_not_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", FILES)
    os.truncate(tmp_path / "folder" / "model.bin", 1 << 40)
    with pytest.raises(CheckpointError, match=r"model\.bin has 1099511627776 bytes, not 9"):
        read_folder(tmp_path / "folder")


def test_a_folder_in_the_place_of_a_file_and_a_link_to_nothing_are_noticed(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", FILES)
    path = tmp_path / "folder" / "model.bin"
    path.unlink()
    for make in (path.mkdir, lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path)):
        make()
        with pytest.raises(CheckpointError, match=r"model\.bin is missing"):
            read_folder(tmp_path / "folder")
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_folder_that_is_not_there_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.* is damaged; no readable MANIFEST\.json there"):
        read_folder(tmp_path / "nowhere")


def test_what_a_crash_left_between_two_renames_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", FILES)
    (tmp_path / "folder").rename(tmp_path / "folder.replaced")
    assert read_folder(tmp_path / "folder") == FILES
    assert remove_leftovers(tmp_path) == []
    write_folder(tmp_path / "folder", {"new": b""})
    assert read_folder(tmp_path / "folder") == {"new": b""}
    assert os.listdir(tmp_path) == ["folder"]


def test_leftovers_are_removed_by_name_and_nothing_else_is(tmp_path: Path) -> None:
    number = "0" * 32
    for name in (f".a.json.{number}", f".report.html.{number}", ".hidden", f"a.{number}", "b.replaced"):
        (tmp_path / name).touch()
    (tmp_path / f".step.{number}").mkdir()
    (tmp_path / f".step.{number}" / "file").touch()
    (tmp_path / f".link.{number}").symlink_to(tmp_path)
    assert remove_leftovers(tmp_path, r"a\.json") == [f".a.json.{number}"]
    assert remove_leftovers(tmp_path) == [f".link.{number}", f".report.html.{number}", f".step.{number}"]
    assert sorted(os.listdir(tmp_path)) == [".hidden", f"a.{number}", "b.replaced"]
    (tmp_path / "b").mkdir()
    assert remove_leftovers(tmp_path) == ["b.replaced"]
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_a_link_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    """C10."""
    (tmp_path / "precious").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OutputError, match=f"cannot write .*{name}; what is there is no ordinary file"):
            write_bytes(tmp_path / name, b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "precious").read_text() == "content"


def test_files_have_the_mode_that_the_user_set(tmp_path: Path) -> None:
    """C13."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.bin", b"")
        write_folder(tmp_path / "folder", FILES)
    finally:
        os.umask(before)
    for path in (tmp_path / "a.bin", tmp_path / "folder" / "model.bin"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_too_little_space_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C01."""
    free = namedtuple("free", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free(250))
    said = r"cannot write .*folder; 0\.0 MB are needed \(0\.0 MB to write, and a fifth to spare\), and 0\.0 MB are free"
    with pytest.raises(OutputError, match=said):
        write_folder(tmp_path / "folder", FILES)
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_too_long_leaves_nothing(tmp_path: Path) -> None:
    """C15."""
    for write in (lambda path: write_bytes(path, b""), lambda path: write_folder(path, FILES)):
        with pytest.raises(OutputError, match="File name too long"):
            write(tmp_path / ("n" * 255))
    assert os.listdir(tmp_path) == []


def test_make_folder_proves_that_it_can_be_written(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write into"):
        make_folder(tmp_path / "file" / "c")


def test_sha256_of_the_empty_string() -> None:
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_new_folder_gets_its_name_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("all of it")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b" / "file").read_text() == "all of it"


@pytest.mark.parametrize(("failure", "seen"), [(ValueError("no"), ValueError), (OSError(28, "full"), OutputError)])
def test_a_new_folder_leaves_nothing_where_the_block_fails(
    failure: Exception, seen: type[Exception], tmp_path: Path
) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half of it")
            raise failure

    with pytest.raises(seen):
        fill()
    assert list(tmp_path.iterdir()) == []
