"""Remote files (`https://`, `s3://`, ...): which addresses are allowed, their metadata, and their download."""

import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO, IOBase
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urljoin, urlsplit

from smalti.core.addresses import SCHEMES, shown
from smalti.core.errors import DataError
from smalti.core.files import sha256
from smalti.core.folder_lock import exclusive_lock
from smalti.core.log import Log
from smalti.data.datasets.data_files import DataFiles, FileVersion, cache_folder, make_cache_folder
from smalti.data.datasets.tables import require_extra

GIGABYTE = 10**9

LOCALHOST = ("localhost", "127.0.0.1", "::1")
ATTEMPTS = 3
_DEFAULT_GIGABYTES = 20
_THREADS, _SAY_EVERY = 8, 10.0
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "xet_hash",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "mtime",
)


class About(NamedTuple):
    """What a server reports of a file: its size in bytes, and a version string that changes with its content."""

    size: int
    version: str


class RemoteFiles(DataFiles):
    """Remote files, each fetched whole into the cache folder when it is first read, for sequential reading.

    A copy is named by address, size and version: a file that changes on its server gets a new copy. The copies of all
    datasets take at most `max_cache_bytes`; the least recently used are removed first. Sequential reading needs room
    for two files.

    Raises:
        DataError: an address is not allowed, a file does not exist, or one is too large for the cache.
    """

    in_order = True

    def __init__(self, urls: Sequence[str]) -> None:
        for url in urls:
            check_address(url)
        require_extra("fsspec", shown(urls[0]))
        self.urls, self.names = tuple(urls), tuple(map(shown, urls))
        self.folder, self.max_bytes = cache_folder() / "remote", max_cache_bytes()
        self._said = -math.inf
        with ThreadPoolExecutor(_THREADS) as threads:
            self.about = tuple(threads.map(ask, urls))
        self.sizes = tuple(about.size for about in self.about)
        if (need := min(sum(self.sizes), 2 * max(self.sizes))) > self.max_bytes:
            cause = f"two of its files have {gigabytes(need)}; the cache in {self.folder} holds "
            fix = f"set SMALTI_CACHE_GB={-(-need // GIGABYTE)} or more"
            where = f"cannot open {self.names[0]} ({len(self)} files)"
            raise DataError(where, cause=cause + gigabytes(self.max_bytes), fix=fix)

    def open(self, number: int) -> FileIO:
        path = self._copy(number)
        try:
            for _ in range(ATTEMPTS):  # another process may remove the copy in between
                with suppress(FileNotFoundError):
                    file = FileIO(path)
                    if time.time() - os.fstat(file.fileno()).st_mtime > 60:
                        with suppress(OSError):
                            os.utime(path)  # mark it as recently used
                    return file
                make_cache_folder(self.folder)
                with exclusive_lock(self.folder):
                    if not path.exists():
                        self._fetch(number, path)
            return FileIO(path)
        except OSError as error:
            cause = f"{error.strerror or error}: {error.filename or self.folder}"
            raise DataError(f"cannot fetch {self.names[number]}", cause=cause) from error

    def peek(self, number: int) -> IOBase:
        if not self._copy(number).exists():
            with suppress(Exception):  # if the server does not support partial reads, fetch the whole file
                file = file_system(self.urls[number]).open(path_at(self.urls[number]), "rb", block_size=1 << 20)
                file.seek(-8, os.SEEK_END)
                if len(file.read(8)) == 8 and file.size == self.sizes[number]:
                    file.seek(0)
                    return cast(IOBase, file)
        return self.open(number)

    def version(self, number: int) -> FileVersion:
        return FileVersion(os.path.realpath(self._copy(number)), self.sizes[number], 0)  # the name has the version

    def _copy(self, number: int) -> Path:
        url, about = self.urls[number], self.about[number]
        return self.folder / f"{sha256(f'{url} {about.size} {about.version}'.encode())[:32]}{suffix_of(url)[:8]}"

    def _fetch(self, number: int, path: Path) -> None:
        url, name, about = self.urls[number], self.names[number], self.about[number]
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # others may write here if there are no locks
        try:
            make_room(self.folder, about.size, self.max_bytes)
            if time.monotonic() - self._said > _SAY_EVERY:
                self._said = time.monotonic()
                Log().say(f"fetch {name} ({gigabytes(about.size)})")
            download(url, part, about.size)
            if (found := part.stat().st_size) != about.size:
                raise DataError("", cause=f"{found} bytes came where {about.size} were promised")
            if ask(url, again=True) != about:
                raise DataError("", cause="it has changed on its server meanwhile", fix="start again")
            os.replace(part, path)
        except DataError as error:
            raise DataError(f"cannot fetch {name}", cause=error.cause, fix=error.fix) from error
        finally:
            part.unlink(missing_ok=True)


def make_room(folder: Path, size: int, most: int) -> None:
    """Remove the least recently used copies, until `size` more bytes keep the total within `most` bytes and the disk.

    The caller makes sure that no other process writes to `folder`.

    Raises:
        DataError: the disk has too little free space, also without the copies; where that is known, they are kept.
    """
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir() if path.is_file())
    total = sum(length for _, length, _ in files)
    if (free := shutil.disk_usage(folder).free) + total >= size:
        for _, length, path in files:
            if total + size > most or free < size:
                path.unlink()  # a process that reads it has it open
                total, free = total - length, shutil.disk_usage(folder).free
    if free < size:
        raise DataError("", cause=f"{gigabytes(size)} needed, {gigabytes(free)} left on the disk of {folder}")


def max_cache_bytes() -> int:
    """The most bytes of all copies: `SMALTI_CACHE_GB` gigabytes, else 20; a `DataError` if that is no number."""
    text = os.environ.get("SMALTI_CACHE_GB") or str(_DEFAULT_GIGABYTES)
    try:
        return round(float(text) * GIGABYTE)
    except (ValueError, OverflowError):
        raise DataError(f"SMALTI_CACHE_GB is {text[:40]!r}", cause="no number", fix="give gigabytes, as 100") from None


def gigabytes(size: int) -> str:
    """A size in bytes as text, as `1.5 GB` or `20 MB`."""
    return f"{size / GIGABYTE:.3g} GB" if size >= GIGABYTE else f"{size / 1e6:.3g} MB"


def check_address(url: str) -> None:
    """Refuse an address of a scheme that is not read; plain http is, on this machine. A command is never run."""
    try:
        scheme, host = scheme_of(url), urlsplit(url).hostname
    except ValueError as error:
        cause = re.sub("'.*'", "it", f"no address: {error}", flags=re.DOTALL)  # it may quote user and password
        raise DataError(f"cannot open {shown(url)}", cause=cause, fix="check the path") from None
    if not re.match(r"[^:]*://|pipe:", url):
        raise DataError(f"cannot open {shown(url)}", cause="two slashes begin an address", fix=f"as in {scheme}://")
    if scheme in SCHEMES or (scheme == "http" and host in LOCALHOST):
        return
    cause = "a command is never run" if scheme == "pipe" else f"{scheme}: is none of the addresses that are read"
    fix = f"give a plain path, or {' '.join(f'{name}://' for name in SCHEMES)}"
    raise DataError(f"cannot open {shown(url)}", cause=cause, fix=fix)


def scheme_of(url: str) -> str:
    """The scheme of an address in lower case, as `https`."""
    return url.split(":", 1)[0].lower()


def suffix_of(url: str) -> str:
    """The extension of the file at an address, in lower case."""
    return Path(urlsplit(url).path).suffix.lower()


def file_system(url: str) -> Any:
    """The fsspec file system of an address, by its scheme alone: no chains (`zip::`), no settings from the address."""
    import fsspec  # type: ignore[import-untyped]

    scheme = scheme_of(url)
    if scheme not in ("http", "https"):
        return fsspec.filesystem(scheme)
    import aiohttp

    # A shard may take longer than the default limit of five minutes; a minute without any data is too long.
    limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    settings = {"timeout": limits, "trust_env": scheme == "https"}
    return fsspec.filesystem(scheme, get_client=_client, client_kwargs=settings)


def check_redirect(from_url: str, to_url: str) -> None:
    """Refuse a redirect to an address that is not allowed, or of another scheme: https never leads to http, and http
    on this machine never to another machine."""
    check_address(to_url)
    if scheme_of(to_url) != scheme_of(from_url):
        cause = f"its server sends us on from {scheme_of(from_url)} to {shown(to_url)}"
        raise DataError(f"cannot open {shown(from_url)}", cause=cause)


async def _client(**settings: Any) -> Any:
    """An aiohttp session that checks redirects before it follows them."""
    import aiohttp

    async def look(session: Any, context: Any, about: Any) -> None:
        to = about.response.headers.get("Location") or about.response.headers.get("URI", "")
        check_redirect(str(about.url), urljoin(str(about.url), to))

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return aiohttp.ClientSession(trace_configs=[trace], **settings)


def path_at(url: str) -> str:
    """The path of an address within its file system."""
    return str(file_system(url)._strip_protocol(url))


def ask(url: str, again: bool = False) -> About:
    """Ask for size and version of a file, `again` past what is cached; a `DataError` if it cannot be reached."""
    with as_data_error(url):
        system = file_system(url)
        if again:
            system.invalidate_cache()
        info = system.info(path_at(url))
    if not isinstance(info.get("size"), int):
        cause = "its server does not say how large it is"
        raise DataError(f"cannot open {shown(url)}", cause=cause, fix="fetch it to this machine first")
    return About(info["size"], next((str(info[key]) for key in _VERSIONS if info.get(key)), ""))


def download(url: str, path: Path, size: int) -> None:
    """Download a whole file; errors that may be temporary are retried, and more than `size` bytes refused."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with as_data_error(url):
                return file_system(url).get_file(path_at(url), str(path), callback=_at_most(size))
        except DataError as error:
            if attempt == ATTEMPTS or isinstance(error.__cause__, ImportError | FileNotFoundError | PermissionError):
                raise
            time.sleep(4**attempt)


def _at_most(size: int) -> Any:
    """An fsspec progress callback that aborts a download of more than `size` bytes."""
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]

    class AtMost(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > size:
                raise ValueError(f"more comes than the {size} bytes that were promised")

    return AtMost()


@contextmanager
def as_data_error(url: str) -> Iterator[None]:
    """Convert every exception of the libraries for remote access into a `DataError`."""
    try:
        yield
    except ImportError as error:
        fix = f"pip install {SCHEMES.get(scheme_of(url), 'aiohttp')}"
        raise DataError(f"cannot open {shown(url)}", cause=f"a library is missing: {error}", fix=fix) from error
    except Exception as error:  # each library has its own exceptions
        known = (error.__cause__ or error) if isinstance(error, FileNotFoundError) else error
        lines = str(known).splitlines() or [type(known).__name__]
        cause = f"it is not there, or cannot be reached: {shown(lines[0])}"
        raise DataError(f"cannot open {shown(url)}", cause=cause, fix="check the path") from error
