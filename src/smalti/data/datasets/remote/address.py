"""Addresses of files (`https://`, `s3://`, ...): which are allowed, what is there, and how it is fetched."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from smalti.core.errors import DataError

SCHEMES = {"https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
"""What is allowed, each with the library that fsspec needs for it."""

LOCALHOST = ("localhost", "127.0.0.1", "::1")
ATTEMPTS = 3
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
    """What a server says of a file: its bytes, and a mark that changes with its content."""

    size: int
    version: str


def check_address(url: str) -> None:
    """Let the schemes of a fixed list pass, and plain http on this machine.

    Raises:
        DataError: any other; a command (`pipe:`) is never run.
    """
    try:
        scheme, host = scheme_of(url), urlsplit(url).hostname
    except ValueError as error:
        raise DataError(f"cannot open {shown(url)}", cause=f"no address: {error}", fix="check --data") from error
    if scheme in SCHEMES or (scheme == "http" and host in LOCALHOST):
        return
    cause = "a command is never run" if scheme == "pipe" else f"{scheme}: is none of the addresses that are read"
    fix = f"give a plain path, or {' '.join(f'{name}://' for name in SCHEMES)}"
    raise DataError(f"cannot open {shown(url)}", cause=cause, fix=fix)


def scheme_of(url: str) -> str:
    """What stands before the colon, as `https`."""
    return url.split(":", 1)[0].lower()


def shown(text: str) -> str:
    """An address, or a text with one, without what may be secret: password, signature."""
    return without_secrets(text)[:200]


def without_secrets(text: str) -> str:
    """The same, as long as it is."""
    return re.sub(r"//[^/\s'\"]*@", "//", re.sub(r"[?#][^\s'\"]*", "", text))


def suffix_of(url: str) -> str:
    """The extension of the file at an address."""
    return Path(urlsplit(url).path).suffix.lower()


def file_system(url: str) -> Any:
    """The file system of an address. Only its scheme chooses: no chains (`zip::`), no settings from the address."""
    import fsspec  # type: ignore[import-untyped]

    scheme = scheme_of(url)
    if scheme not in ("http", "https"):
        return fsspec.filesystem(scheme)
    import aiohttp

    # A shard may take longer than the five minutes that are the default; a minute of silence is too long.
    limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    settings = {"timeout": limits, "trust_env": scheme == "https"}
    return fsspec.filesystem(scheme, get_client=_client, client_kwargs=settings)


def check_redirect(from_url: str, to_url: str) -> None:
    """Let a server send us on to an address of the same scheme that could have been given as well.

    Raises:
        DataError: it does not; from https nothing leads to http, and from this machine nothing leads away by it.
    """
    check_address(to_url)
    if scheme_of(to_url) != scheme_of(from_url):
        cause = f"its server sends us on from {scheme_of(from_url)} to {shown(to_url)}"
        raise DataError(f"cannot open {shown(from_url)}", cause=cause)


async def _client(**settings: Any) -> Any:
    """A session of aiohttp that looks at redirects before it follows them."""
    import aiohttp

    async def look(session: Any, context: Any, about: Any) -> None:
        to = about.response.headers.get("Location") or about.response.headers.get("URI", "")
        check_redirect(str(about.url), urljoin(str(about.url), to))

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return aiohttp.ClientSession(trace_configs=[trace], **settings)


def path_at(url: str) -> str:
    """An address as its file system writes it."""
    return str(file_system(url)._strip_protocol(url))


def ask(url: str, again: bool = False) -> About:
    """What the server says of a file; `again`, not what it said before.

    Raises:
        DataError: it is not there or cannot be reached, or its size is not known.
    """
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
    """Fetch a file whole; what may pass is tried again.

    Raises:
        DataError: it cannot be fetched, or more comes than the `size` bytes that are promised.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with as_data_error(url):
                return file_system(url).get_file(path_at(url), str(path), callback=_at_most(size))
        except DataError as error:
            if attempt == ATTEMPTS or isinstance(error.__cause__, ImportError | FileNotFoundError | PermissionError):
                raise
            time.sleep(4**attempt)


def _at_most(size: int) -> Any:
    """What fsspec tells of its progress: it is stopped where a server does not stop by itself."""
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]

    class AtMost(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > size:
                raise ValueError(f"more comes than the {size} bytes that were promised")

    return AtMost()


@contextmanager
def as_data_error(url: str) -> Iterator[None]:
    """Whatever a library for a kind of server raises, as one error."""
    try:
        yield
    except ImportError as error:
        fix = f"pip install {SCHEMES.get(scheme_of(url), 'aiohttp')}"
        raise DataError(f"cannot open {shown(url)}", cause=f"a library is missing: {error}", fix=fix) from error
    except Exception as error:  # each kind of server has errors of its own
        known = (error.__cause__ or error) if isinstance(error, FileNotFoundError) else error
        lines = str(known).splitlines() or [type(known).__name__]
        cause = f"it is not there, or cannot be reached: {shown(lines[0])}"
        raise DataError(f"cannot open {shown(url)}", cause=cause, fix="check --data") from error
