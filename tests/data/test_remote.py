"""Shards and Parquet files at an address: what is allowed, the bounded cache, indices, failures. The server is ours."""

import contextlib
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from smalti.core.addresses import SCHEMES, shown
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets import parquet, remote
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import open_source
from smalti.data.datasets.remote import (
    About,
    RemoteFiles,
    ask,
    check_address,
    check_redirect,
    make_room,
    max_cache_bytes,
)
from smalti.data.load import Data
from smalti.runs.check import Check, main
from tests.contracts import check_dataset
from tests.data.tables import png, table, write
from tests.data.test_shards import tar_of


class Server(ThreadingHTTPServer):
    """Files by path. Counts requests, and can be told to fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests = Counter[str]()
        self.ranges, self.tags = True, True
        self.fail, self.cut = 0, 0
        self.sent_on: dict[str, str] = {}
        self.endless = False
        self.replace_while_sent: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        server, path = self.server, self.path.split("?")[0]
        data, wanted = server.files.get(path), self.headers.get("Range")
        part = server.ranges and wanted is not None
        server.requests[f"{'part' if part else self.command} {path}"] += 1
        if path in server.sent_on:
            self.send_response(302)
            self.send_header("Location", server.sent_on[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.endless and with_body and not part:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):  # until nobody listens any more
                while True:
                    self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            self.close_connection = True
            return
        if data is None or (with_body and server.fail > 0):
            server.fail -= data is not None
            self.send_response(404 if data is None else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = data
        if part:
            first, last = str(wanted).removeprefix("bytes=").split("-")
            begin = int(first) if first else len(data) - int(last)
            body = data[begin : (int(last) + 1 if first and last else len(data))]
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{len(data)}")
        if server.tags:
            self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.send_header("Accept-Ranges", "bytes" if server.ranges else "none")
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) - server.cut])
            self.close_connection = server.cut > 0
            if not part and path in server.replace_while_sent:
                server.files[path] = server.replace_while_sent[path]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SMALTI_CACHE_GB", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "cache" / "remote"


def shard(*numbers: int) -> bytes:
    pairs = [((f"{n}.png", png(n)), (f"{n}.cls", b"%d" % (n % 2))) for n in numbers]
    return tar_of(*[entry for pair in pairs for entry in pair])


def values(source: Any) -> list[int]:
    return [int(source[position].image[0, 0, 0]) for position in range(len(source))]


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_file())


def test_shards_at_an_address(server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = {f"/set/s-{n:03d}.tar": shard(*range(4 * n, 4 * n + 4)) for n in range(3)}
    pattern = f"{server.url}/set/s-{{000..002}}.tar"
    source = open_source(pattern, 1, Log())
    assert isinstance(source, ImageDataset)
    check_dataset(source)
    assert values(source) == list(range(12))
    assert (source.kind, source.classes, source[3].label) == ("shards", ("0", "1"), 1)
    assert source.name(5) == f"{server.url}/set/s-001.tar/5.png"
    assert source.key(5) == "s-001.tar/5.png"
    assert f"fetch {server.url}/set/s-000.tar" in capsys.readouterr().err
    assert [path.suffix for path in copies(cache)] == [".tar"] * 3
    assert sum(count for request, count in server.requests.items() if request.startswith("GET")) == 3
    assert main(Check(pattern, side=16))["readable"] == 12
    assert sum(count for request, count in server.requests.items() if request.startswith("GET")) == 3


def test_the_index_of_a_shard_outlives_its_copy(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(1, 2)}
    open_source(f"{server.url}/0.tar", 1)
    for path in copies(cache):
        path.unlink()
    server.requests.clear()
    source = open_source(f"{server.url}/0.tar", 1)
    assert (len(source), set(server.requests)) == (2, {"HEAD /0.tar"})
    assert values(source) == [1, 2]
    assert server.requests["GET /0.tar"] == 1


def test_a_file_that_changes_on_its_server_is_another_file(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(1, 2)}
    assert values(open_source(f"{server.url}/0.tar", 1)) == [1, 2]
    server.files = {"/0.tar": shard(3, 4)}
    assert len(server.files["/0.tar"]) == len(shard(1, 2)), "only the tag tells"
    assert values(open_source(f"{server.url}/0.tar", 1)) == [3, 4]
    assert len(copies(cache)) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_parquet_at_an_address(
    server: Server, tmp_path: Path, cache: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_SLIM_BYTES", 0)
    server.ranges = ranges
    for number in range(2):
        path = write(tmp_path / "x.parquet", table(range(4 * number, 4 * number + 4)), 2)
        server.files[f"/train-{number}.parquet"] = path.read_bytes()
    source = open_source(f"{server.url}/train-{{0..1}}.parquet", 1)
    assert (len(source), source.classes) == (8, ("cat", "dog", "emu"))
    assert cache.exists() != ranges or copies(cache) == [], "what a file says about itself needs no copy"
    check_dataset(source)
    assert values(source) == list(range(8))
    assert len(copies(cache)) == 2


def test_a_source_can_be_sent_to_another_process(server: Server) -> None:
    server.files = {"/0.tar": shard(1, 2)}
    sent = pickle.loads(pickle.dumps(open_source(f"{server.url}/0.tar", 1, Log())))
    assert values(sent) == [1, 2]


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("pipe:touch ran", "a command is never run"),
        ("file:///etc/0.tar", "file: is none of the addresses"),
        ("http://example.org/0.tar", "http: is none of the addresses"),
        ("http://localhost@example.org/0.tar", "http: is none of the addresses"),
        ("http://127.0.0.1.example.org/0.tar", "http: is none of the addresses"),
        ("ftp://localhost/0.tar", "ftp: is none of the addresses"),
        ("local:///etc/0.tar", "local: is none of the addresses"),
        ("memory://0.tar", "memory: is none of the addresses"),
        ("http://{localhost,example.org}/0.tar", "http: is none of the addresses"),
        ("https://[x/0.tar", "no address: Invalid IPv6 URL"),
        ("https://me:word@ho\u2100st/0.tar", "no address: netloc it contains invalid characters"),
        ("http:/127.0.0.1/0.tar", "two slashes begin an address; as in http://"),
        ("S3:/bucket/0.tar", "two slashes begin an address; as in s3://"),
    ],
)
def test_h17_only_listed_addresses_are_read(url: str, cause: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"cannot open .*; {cause}"):
        open_source(url, 1)
    assert not (tmp_path / "ran").exists()


def test_h17_every_address_of_a_pattern_is_looked_at(server: Server) -> None:
    server.files = {"/0.tar": shard(1)}
    with pytest.raises(DataError, match=r"cannot open http://example\.org/0\.tar; http: is none of the addresses"):
        RemoteFiles([f"{server.url}/0.tar", "http://example.org/0.tar"])
    assert not server.requests


def test_h17_an_address_cannot_name_another_within_it(server: Server) -> None:
    """fsspec chains addresses by `::`; here it is a part of the path, and nothing is there."""
    with pytest.raises(DataError, match="it is not there, or cannot be reached"):
        open_source(f"{server.url}/x::file:///etc/0.tar", 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_allowed_addresses(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the list alone: taken from it, the same address is refused."""
    check_address(f"{scheme}://bucket/0.tar")
    monkeypatch.delitem(SCHEMES, scheme)
    with pytest.raises(DataError, match=f"{scheme}: is none of the addresses that are read"):
        check_address(f"{scheme}://bucket/0.tar")


def test_what_is_read_at_an_address(server: Server) -> None:
    message = (
        "cannot open http.*; at an address are read tar shards .* and Parquet files, not .zip; as in https://.../shards"
    )
    with pytest.raises(DataError, match=message):
        open_source(f"{server.url}/0.zip", 1)
    with pytest.raises(DataError, match="not a folder; as in"):
        open_source(f"{server.url}/set", 1)


def test_secrets_of_an_address_are_not_shown() -> None:
    assert shown("https://me:word@host/a/0.tar?sig=1#x") == "https://host/a/0.tar"
    assert shown("hf://datasets/a/b@main/0.tar") == "hf://datasets/a/b@main/0.tar"
    assert shown("403, url='https://h/0.tar?sig=1'") == "403, url='https://h/0.tar"
    with pytest.raises(DataError) as caught:
        ask("http://me:word@127.0.0.1:1/0.tar?sig=1")
    assert "word" not in str(caught.value)
    assert "sig" not in str(caught.value)


def test_what_is_not_there_is_a_data_error(server: Server) -> None:
    message = r"cannot open http.*/0\.tar; it is not there, or cannot be reached: 404.*; check the path"
    with pytest.raises(DataError, match=message):
        open_source(f"{server.url}/0.tar", 1)
    with pytest.raises(DataError, match=r"cannot be reached: Cannot connect to host"):
        open_source("http://127.0.0.1:1/0.tar", 1)


@pytest.mark.parametrize(("module", "package"), [("s3fs", "s3fs"), ("gcsfs", "gcsfs"), ("adlfs", "adlfs")])
def test_a_missing_library_is_named(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = {"s3fs": "s3", "gcsfs": "gs", "adlfs": "az"}[module]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"cannot open .*0\.tar; a library is missing: .*; pip install {package}"):
        open_source(f"{scheme}://bucket/0.tar", 1)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"cannot open https://x/0\.tar; fsspec is not installed; pip install 'smalti\[data\]'"
    with pytest.raises(DataError, match=message):
        open_source("https://x/0.tar", 1)


def test_a_failure_that_passes_is_not_seen(server: Server) -> None:
    server.files = {"/0.tar": shard(1)}
    server.fail = 2
    assert values(open_source(f"{server.url}/0.tar", 1)) == [1]


def test_a_failure_that_does_not_pass_is_a_data_error(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(1)}
    server.fail = 99
    with pytest.raises(DataError, match=r"cannot fetch http.*/0\.tar; it is not there, or cannot be reached: 503"):
        open_source(f"{server.url}/0.tar", 1)
    assert copies(cache) == []


def test_a_download_that_is_cut_off_leaves_nothing(server: Server, cache: Path) -> None:
    """K14."""
    server.files = {"/0.tar": shard(1)}
    server.cut = 100
    with pytest.raises(DataError, match=r"cannot fetch http.*/0\.tar; "):
        open_source(f"{server.url}/0.tar", 1)
    assert copies(cache) == []


def test_a_file_of_another_size_than_promised_is_refused(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"/0.tar": shard(1)}
    monkeypatch.setattr(remote, "download", lambda url, path, size: path.write_bytes(b"abc"))
    with pytest.raises(DataError, match=f"3 bytes came where {len(shard(1))} were promised"):
        open_source(f"{server.url}/0.tar", 1)
    assert copies(cache) == []


def test_a_file_that_changes_while_it_is_fetched_is_refused(server: Server, cache: Path) -> None:
    """K14."""
    server.files, server.replace_while_sent = {"/0.tar": shard(1, 2)}, {"/0.tar": shard(3, 4)}
    message = r"cannot fetch http.*/0\.tar; it has changed on its server meanwhile; start again"
    with pytest.raises(DataError, match=message):
        open_source(f"{server.url}/0.tar", 1)
    assert copies(cache) == []


def test_k14_a_server_may_send_us_on_to_what_could_have_been_given(server: Server) -> None:
    server.files, server.sent_on = {"/0.tar": shard(1)}, {"/old.tar": "/0.tar"}
    assert values(open_source(f"{server.url}/old.tar", 1)) == [1]


@pytest.mark.parametrize(
    ("to", "cause"),
    [
        ("http://example.org/0.tar", "http: is none of the addresses that are read"),
        ("http://169.254.169.254/latest/meta-data", "http: is none of the addresses that are read"),
        ("https://example.org/0.tar?sig=secret", "its server sends us on from http to https://example.org/0.tar"),
        ("file:///etc/passwd", "file: is none of the addresses that are read"),
        ("ftp://example.org/0.tar", "ftp: is none of the addresses that are read"),
    ],
)
def test_k14_a_server_may_not_send_us_anywhere_else(to: str, cause: str, server: Server, cache: Path) -> None:
    """Nobody is asked there: this has no network, and ends at once."""
    server.sent_on = {"/0.tar": to}
    with pytest.raises(DataError) as raised:
        open_source(f"{server.url}/0.tar", 1)
    assert cause in str(raised.value)
    assert "secret" not in str(raised.value)
    assert not cache.exists()


def test_k14_from_https_nothing_leads_to_http() -> None:
    check_redirect("https://a/0.tar", "https://b/0.tar")
    with pytest.raises(DataError, match=r"cannot open https://a/0\.tar; its server sends us on from https to http://"):
        check_redirect("https://a/0.tar", "http://127.0.0.1/0.tar")


def test_k14_a_file_that_does_not_end_is_not_fetched_for_ever(server: Server, cache: Path) -> None:
    server.files, server.endless = {"/0.tar": shard(1)}, True
    size = len(server.files["/0.tar"])
    with pytest.raises(DataError, match=f"more comes than the {size} bytes that were promised"):
        open_source(f"{server.url}/0.tar", 1)
    assert copies(cache) == []


def test_k16_the_cache_is_made_for_its_user_alone(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(1)}
    open_source(f"{server.url}/0.tar", 1)
    assert cache.parent.stat().st_mode & 0o777 == 0o700


def test_k16_a_cache_that_others_can_change_is_worth_a_line(
    server: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir(parents=True)
    cache.parent.chmod(0o777)
    server.files = {"/0.tar": shard(1), "/1.tar": shard(2)}
    for name in server.files:
        open_source(f"{server.url}{name}", 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == [
        f"warning: everybody can write into {cache.parent}, so what is kept there can be changed by"
        " others; set SMALTI_CACHE to your own"
    ]


def test_a_server_that_does_not_say_the_size(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class System:
        def info(self, path: str) -> dict[str, Any]:
            return {"size": None}

        def _strip_protocol(self, path: str) -> str:
            return path

    monkeypatch.setattr(remote, "file_system", lambda url: System())
    with pytest.raises(DataError, match="its server does not say how large it is; fetch it to this machine first"):
        ask("https://x/0.tar")


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"ETag": '"a"', "LastModified": 3}, '"a"'),
        ({"etag": "b"}, "b"),
        ({"blob_id": "c", "last_commit": None}, "c"),
        ({"Last-Modified": "Mon"}, "Mon"),
        ({}, ""),
    ],
)
def test_the_version_of_a_file(info: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class System:
        def info(self, path: str) -> dict[str, Any]:
            return {"size": 7} | info

        def _strip_protocol(self, path: str) -> str:
            return path

    monkeypatch.setattr(remote, "file_system", lambda url: System())
    assert ask("s3://x/0.tar") == About(7, version)


def test_a_data_set_above_the_bound_is_fetched_as_it_is_read(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {f"/{n}.tar": shard(n) for n in range(6)}
    size = len(server.files["/0.tar"])
    monkeypatch.setenv("SMALTI_CACHE_GB", str(2.5 * size / 1e9))
    pattern = f"{server.url}/{{0..5}}.tar"
    source = open_source(pattern, 1)
    assert values(source) == list(range(6))
    assert len(copies(cache)) == 2
    monkeypatch.setenv("SMALTI_CACHE_GB", str(1.5 * size / 1e9))
    message = r"two of its files have 0.0205 MB; the cache in .* holds 0.0154 MB; set SMALTI_CACHE_GB=1 or more$"
    with pytest.raises(DataError, match=message):
        open_source(pattern, 1)


def test_addresses_are_never_streamed(server: Server) -> None:
    server.files = {"/0.tar": shard(*range(9))}
    url = f"{server.url}/0.tar"
    with pytest.raises(DataError, match=r"cannot stream http.*/0\.tar; Parquet files and addresses are read in order"):
        Data(f"{url}?sig=secret", channels=1, side=4, memory="stream").open(Log())
    assert len(Data(url, channels=1, side=4).open(Log()).train) == 8


def fill(folder: Path, name: str, size: int, age: float = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_room(folder, size, 100)
    (folder / name).write_bytes(bytes(size))
    used = time.time() - age
    os.utime(folder / name, (used, used))


def test_what_is_unused_for_longest_goes_first(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(1)}
    files = RemoteFiles([f"{server.url}/0.tar"])
    files.open(0).close()
    os.utime(copies(cache)[0], (time.time() - 300,) * 2)
    before = copies(cache)[0].stat().st_mtime
    files.open(0).close()
    assert copies(cache)[0].stat().st_mtime > before + 200, "to be opened is to be used"
    copies(cache)[0].unlink()
    for name, age in (("a", 300), ("b", 200), ("c", 100)):
        fill(cache, name, 30, age)
    os.utime(cache / "a")
    fill(cache, "d", 30)
    assert [path.name for path in copies(cache)] == ["a", "c", "d"]


def test_a_reader_is_not_disturbed_when_its_file_goes(cache: Path) -> None:
    fill(cache, "a", 60, 300)
    with open(cache / "a", "rb") as file:
        fill(cache, "b", 60)
        assert not (cache / "a").exists()
        assert file.read() == bytes(60)


def test_what_a_killed_download_left_goes_like_any_copy(cache: Path) -> None:
    fill(cache, "a.tar.part", 90, 7200)
    fill(cache, "c", 90)
    assert [path.name for path in copies(cache)] == ["c"]


def test_a_copy_that_went_is_fetched_again(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(1, 2)}
    source = open_source(f"{server.url}/0.tar", 1)
    copies(cache)[0].unlink()
    with ThreadPoolExecutor(4) as threads:
        labels = list(threads.map(lambda position: source[position % 2].label, range(16)))
    assert labels == [1, 0] * 8
    assert server.requests["GET /0.tar"] == 2, "four threads fetch once"


FETCH = "import sys; from smalti.data.datasets.open import open_source; print(len(open_source(sys.argv[1], 1)))"


def test_two_processes_fetch_the_same_file(server: Server, cache: Path) -> None:
    server.files = {"/0.tar": shard(*range(20))}
    command = [sys.executable, "-c", FETCH, f"{server.url}/0.tar"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0].split() for process in started] == [[b"20"]] * 2
    assert len(copies(cache)) == 1
    assert server.requests["GET /0.tar"] == 1


def test_a_disk_that_is_full_is_a_data_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(DataError, match=r"2e-05 MB needed, 1e-05 MB left on the disk of "):
        fill(cache, "a", 20)


def test_copies_make_room_on_a_disk_that_is_smaller_than_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        def __init__(self, folder: Path) -> None:
            self.free = 55 - sum(path.stat().st_size for path in copies(folder))

    monkeypatch.setattr(shutil, "disk_usage", Usage)
    for name, size, age in (("a", 20, 300), ("b", 20, 200), ("c", 30, 0)):
        fill(cache, name, size, age)
    assert [path.name for path in copies(cache)] == ["b", "c"]
    with pytest.raises(DataError, match="6e-05 MB needed, 5e-06 MB left on the disk of "):
        fill(cache, "d", 60)
    assert [path.name for path in copies(cache)] == ["b", "c"], "where nothing helps, nothing is removed"


def test_a_cache_that_cannot_be_written_is_a_data_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {"/0.tar": shard(1)}
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot fetch http.*/0\.tar; Not a directory: .*file"):
        open_source(f"{server.url}/0.tar", 1)


@pytest.mark.parametrize("text", ["a lot", "inf", "nan"])
def test_the_bound_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_cache_bytes() == 20e9
    monkeypatch.setenv("SMALTI_CACHE_GB", text)
    with pytest.raises(DataError, match=f"SMALTI_CACHE_GB is '{text}'; no number; give gigabytes, as 100"):
        max_cache_bytes()
