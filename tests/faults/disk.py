"""A disk that fails at the operation it is told to, and knows what a power cut would leave."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

Fault = Literal["crash", "no space", "i/o error", "short write", "torn write"]
"""crash: the process is gone, in the middle of a write. no space: from here on. short write: `os.write` says so.
torn write: `os.write` says that it wrote all, and did not."""

Loss = Literal["nothing", "contents", "entries", "everything"]
"""What a power cut takes of all that was not flushed: contents of files, entries of folders, or both."""

LOSSES: tuple[Loss, ...] = ("nothing", "contents", "entries", "everything")
_OPERATIONS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
_GROWING = ("open", "write", "mkdir")


class Crashed(BaseException):
    """The process is gone; no `except` of ours may see it."""


@dataclass
class Disk:
    """The tree below `root`, all of which is on the disk at the start.

    Args:
        fault: what happens at operation `at`, counted from 0; later ones find a dead process after a crash.
    """

    root: Path
    fault: Fault | None = None
    at: int = 0
    done: list[str] = field(default_factory=list)
    dead: bool = False
    contents: dict[int, bytes] = field(default_factory=dict)
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    handles: dict[int, int] = field(default_factory=dict)
    """Every file and folder there ever was stays open, so that no number is used twice."""

    def __post_init__(self) -> None:
        self._real = {name: getattr(os, name) for name in _OPERATIONS}
        for folder, _, files in os.walk(self.root):
            self.entries[self._know(Path(folder))] = self._listed(self._know(Path(folder)))
            for name in files:
                number = self._know(Path(folder) / name)
                self.contents[number] = self._content(number)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let this process write to the disk."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _OPERATIONS:
                patch.setattr(os, name, getattr(self, f"_{name}"))
            yield

    def after_power_cut(self, loss: Loss, target: Path) -> Path:
        """Write to `target` what is found when the power is back."""
        self._restore(self.root.stat().st_ino, loss, target)
        return target

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)

    def _restore(self, number: int, loss: Loss, target: Path) -> None:
        if number not in self.entries:
            lost = loss in ("contents", "everything")
            target.write_bytes(self.contents.get(number, b"") if lost else self._content(number))
            return
        target.mkdir()
        lost = loss in ("entries", "everything")
        for name, inner in (self.entries[number] if lost else self._listed(number)).items():
            self._restore(inner, loss, target / name)

    def _know(self, path: Path) -> int:
        number = path.stat().st_ino
        if number not in self.handles:
            self.handles[number] = self._real["open"](path, os.O_RDONLY)
        return number

    def _content(self, number: int) -> bytes:
        handle = self.handles[number]
        return os.pread(handle, os.fstat(handle).st_size, 0)

    def _listed(self, number: int) -> dict[str, int]:
        with os.scandir(self.handles[number]) as found:
            return {entry.name: entry.inode() for entry in found}

    def _operation(self, name: str) -> bool:
        """Count one. Whether it is a write that goes wrong halfway."""
        if self.dead:
            raise Crashed
        here = len(self.done)
        self.done.append(name)
        if self.fault == "no space" and here >= self.at and name in _GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if here != self.at:
            return False
        if self.fault == "i/o error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.fault == "crash":
            self.dead = True
            if name != "write":
                raise Crashed
        return self.fault is not None and name == "write"

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if not flags & os.O_CREAT:
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        self._operation("open")
        handle = int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        self._know(Path(path))
        return handle

    def _write(self, handle: int, data: memoryview) -> int:
        halfway = self._operation("write")
        written = int(self._real["write"](handle, data[: len(data) // 2] if halfway else data))
        if self.dead:
            raise Crashed
        return len(data) if halfway and self.fault == "torn write" else written

    def _fsync(self, handle: int) -> None:
        self._operation("fsync")
        number = os.fstat(handle).st_ino
        if number in self.entries:
            self.entries[number] = self._listed(number)
        else:
            self.contents[number] = self._content(number)

    def _mkdir(self, path: Any, mode: int = 0o777) -> None:
        self._operation("mkdir")
        self._real["mkdir"](path, mode)
        self.entries[self._know(Path(path))] = {}

    def _replace(self, source: Any, target: Any) -> None:
        self._operation("replace")
        self._real["replace"](source, target)

    def _rename(self, source: Any, target: Any) -> None:
        self._operation("rename")
        self._real["rename"](source, target)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._operation("unlink")
        self._real["unlink"](path, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._operation("rmdir")
        self._real["rmdir"](path, dir_fd=dir_fd)
