"""Shards and Parquet files at an address (`https://`, `s3://`, ...), fetched whole when they are first read."""

import contextlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO, IOBase
from pathlib import Path
from typing import Any, cast

from smalti.core.errors import DataError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.data.datasets.index_cache import Slot
from smalti.data.datasets.remote.address import (
    ATTEMPTS,
    About,
    ask,
    check_address,
    download,
    file_system,
    path_at,
    shown,
    suffix_of,
)
from smalti.data.datasets.remote.data_files import DataFiles
from smalti.data.datasets.remote.remote_cache import GIGABYTE, RemoteCache, gigabytes
from smalti.data.datasets.tables.columns import require_extra

_THREADS = 8
_SAY_EVERY = 10.0


class RemoteFiles(DataFiles):
    """Files at addresses, and their copies in a bounded cache.

    A copy is called by address, size and version: a file that changes on its server is another file here. The whole
    data set has to fit into the cache, for reading at random would fetch files over and over; only who reads in order
    may go beyond.

    Raises:
        DataError: an address that is not allowed, a file that is not there, or a data set larger than the cache.
    """

    def __init__(self, urls: Sequence[str], log: Log | None = None, in_order: bool = False) -> None:
        for url in urls:
            check_address(url)
        require_extra("fsspec", shown(urls[0]))
        self.urls = tuple(urls)
        self.names = tuple(map(shown, urls))
        self.cache = RemoteCache()
        self._start(log or Log())
        with ThreadPoolExecutor(_THREADS) as threads:
            self.about = tuple(threads.map(ask, urls))
        self.sizes = tuple(about.size for about in self.about)
        self._check_room(in_order)
        self.files = tuple(map(_file_name, urls, self.about))
        if sum(self.sizes) <= self.cache.max_bytes:
            with contextlib.suppress(OSError):
                self.cache.lease(self, self.files)

    def _start(self, log: Log) -> None:
        """What belongs to one process."""
        self.log, self._said = log, -math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "log"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start(Log())

    def open(self, number: int) -> FileIO:
        try:
            for _ in range(ATTEMPTS):  # another process could remove it in between
                with contextlib.suppress(FileNotFoundError):
                    return self.cache.open(self.files[number])
                self._fetch(number)
            return self.cache.open(self.files[number])
        except OSError as error:
            cause = f"{error.strerror or error}: {error.filename or self.cache.folder}"
            raise DataError(f"cannot fetch {self.names[number]}", cause=cause) from error

    def peek(self, number: int) -> IOBase:
        if not (self.cache.folder / self.files[number]).exists():
            with contextlib.suppress(Exception):  # a server that cannot give a part gives the whole
                file = file_system(self.urls[number]).open(path_at(self.urls[number]), "rb", block_size=1 << 20)
                file.seek(-8, os.SEEK_END)
                if len(file.read(8)) == 8 and file.size == self.sizes[number]:
                    file.seek(0)
                    return cast(IOBase, file)
        return self.open(number)

    def slot(self, number: int) -> Slot:
        # The name of the copy says which version it is of, so no time of change is needed.
        about = os.stat_result((0, 0, 0, 0, 0, 0, self.sizes[number], 0, 0, 0))
        return Slot(self.cache.folder / self.files[number], about)

    def _check_room(self, in_order: bool) -> None:
        total, room = sum(self.sizes), self.cache.max_bytes
        need = min(total, 2 * max(self.sizes)) if in_order else total
        if need <= room:
            return
        fix = f"set SMALTI_CACHE_GB={-(-need // GIGABYTE)} or more"
        if in_order:
            cause = f"two of its files have {gigabytes(need)}"
        else:
            cause = f"it has {gigabytes(need)}, and read at random it would be fetched over and over"
            fix += ", or make a small copy once: smalti prepare DATA --out SHARDS"
        cause += f"; the cache in {self.cache.folder} holds {gigabytes(room)}"
        raise DataError(f"cannot open {self.names[0]} ({len(self)} files)", cause=cause, fix=fix)

    def _say(self, line: str) -> None:
        """At most a line every ten seconds: a data set may have a thousand files."""
        if time.monotonic() - self._said > _SAY_EVERY:
            self._said = time.monotonic()
            self.log.say(line)

    def _fetch(self, number: int) -> None:
        """Download a file, unless another process has done so meanwhile."""
        url, name, about = self.urls[number], self.names[number], self.about[number]

        def write(path: Path) -> None:
            self._say(f"fetch {name} ({gigabytes(about.size)})")
            download(url, path, about.size)
            if ask(url, again=True) != about:
                raise DataError("", cause="it has changed on its server meanwhile", fix="start again")

        try:
            self.cache.add(self.files[number], about.size, write)
        except DataError as error:
            raise DataError(f"cannot fetch {name}", cause=error.cause, fix=error.fix) from error


def _file_name(url: str, about: About) -> str:
    return f"{sha256(f'{url} {about.size} {about.version}'.encode())[:32]}{suffix_of(url)[:8]}"
