"""Files that are either whole or absent: written beside the target, flushed to the disk, then renamed over it."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from smalti.core.errors import OutputError


def sha256(*parts: bytes | memoryview) -> str:
    """The digest in hexadecimal of all parts in a row."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write all parts to `path` atomically; after a crash it holds the old content or the new one, never half of it."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(f"cannot write {path}", cause=error.strerror or str(error)) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; a number that is not finite is an error."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files atomically, with a MANIFEST.json of sizes and digests written last."""
    temporary = _temporary(path)
    manifest = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
    try:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            write_bytes(temporary / name, data)
        write_json(temporary / "MANIFEST.json", manifest)
        replaced = _temporary(path)
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        _sync_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, OutputError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = error.cause if isinstance(error, OutputError) else error.strerror
        raise OutputError(f"cannot write {path}", cause=cause or str(error)) from error


def read_folder(path: Path) -> dict[str, bytes] | None:
    """The files of a folder written by `write_folder`, or None where one is missing or differs from its digest."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_bytes())
        digests = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
        files = {name: (path / name).read_bytes() for name in digests if Path(name).name == name}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None
    found = {name: (len(data), sha256(data)) for name, data in files.items()}
    return files if found == digests else None


def make_folder(path: Path) -> None:
    """Create a folder and prove that it can be written, before hours of work depend on it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {path}", cause=error.strerror or str(error)) from error


def _temporary(path: Path) -> Path:
    """A name beside `path` that nothing else has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
