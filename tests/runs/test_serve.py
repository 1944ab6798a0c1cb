"""`smalti serve` as a process: what it says, whom it answers, and how it ends."""

import importlib.util
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from smalti.cli import main
from smalti.core.errors import UsageError
from smalti.runs import serve
from smalti.runs.serve import Serve

PREDICT = json.dumps({"image": "astronaut", "mask": {"patches": [5]}}).encode()


@contextmanager
def started(run: Path, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The process and its port; it is ended, if it has not ended by itself."""
    command = [sys.executable, "-m", "smalti", "serve", str(run), "--port", "0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--precision", "fp32"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"is at http://127\.0\.0\.1:(\d+)/", line)
        assert found is not None, line + (process.stderr.read() if process.stderr else "")
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def request(method: str, path: str, body: bytes = b"", headers: str = "Content-Type: application/json\r\n") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answer(port: int, sent: bytes, seconds: float = 120.0) -> bytes:
    """What comes back until nothing has come for a moment, or the other end hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with suppress(OSError):  # it hung up before all of it was sent
            connection.sendall(sent)
        received, wait = b"", seconds
        while select.select([connection], [], [], wait)[0]:
            try:
                part = connection.recv(1 << 16)
            except OSError:
                break
            if not part:
                break
            received, wait = received + part, 0.5
        return received


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    with started(runs / "crossed") as found:
        yield found


def status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


def answered(port: int) -> None:
    """Waits until there is room for another prediction."""
    deadline = time.monotonic() + 240
    while status(answer(port, request("POST", "/api/predict", PREDICT))) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_it_answers_on_this_machine(server: tuple["subprocess.Popen[str]", int]) -> None:
    _, port = server
    assert b"<title>smalti</title>" in answer(port, request("GET", "/"))
    found = answer(port, request("POST", "/api/predict", PREDICT))
    assert status(found) == 200
    assert json.loads(found.partition(b"\r\n\r\n")[2])["masked"] == [5]


def test_k11_what_is_no_http_is_hung_up_on(server: tuple["subprocess.Popen[str]", int]) -> None:
    _, port = server
    long = request("GET", "/", headers=f"X-Long: {'x' * (1 << 20)}\r\n")
    for sent in (long, b"\x16\x03\x01\x02\x00", b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"nonsense\r\n\r\n"):
        received = answer(port, sent)
        assert not received or status(received) in (400, 404, 431)
    assert status(answer(port, request("GET", "/"))) == 200


def test_k09_clients_that_hang_up_leave_nothing(server: tuple["subprocess.Popen[str]", int]) -> None:
    process, port = server
    statm = Path(f"/proc/{process.pid}/statm")
    if not statm.exists():
        pytest.skip("memory in use is read from /proc")

    def leave_early(count: int) -> None:
        whole = request("POST", "/api/predict", PREDICT)
        for number in range(count):
            with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
                connection.sendall(whole[: len(whole) - number % 2])  # one half of them before the request is complete

    leave_early(200)
    answered(port)
    before = int(statm.read_text().split()[1])
    leave_early(1000)
    answered(port)
    assert (int(statm.read_text().split()[1]) - before) * 4096 < 16 << 20
    assert len(os.listdir(f"/proc/{process.pid}/fd")) < 60


def test_k04_endless_bodies_take_little_memory(server: tuple["subprocess.Popen[str]", int]) -> None:
    process, port = server
    status_of = Path(f"/proc/{process.pid}/status")
    if not status_of.exists():
        pytest.skip("memory in use is read from /proc")

    def most() -> int:
        (line,) = (line for line in status_of.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    before, chunk = most(), b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    head = (
        "POST /api/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(head.encode())
            sent, received = 0, b""
            while sent < 200 and not select.select([connection], [], [], 0)[0]:
                try:
                    connection.sendall(chunk)
                except OSError:
                    break
                sent += 1
            with suppress(OSError):  # it hung up
                received = connection.recv(1 << 16)
            assert sent < 200
            assert not received or status(received) == 413
    declared = request("POST", "/api/image", b"", "Content-Type: image/png\r\n").replace(
        b"Length: 0", b"Length: 99999999999"
    )
    assert status(answer(port, declared)) == 413
    answered(port)
    assert most() - before < 50 << 20


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to(runs: Path, end: signal.Signals) -> None:
    with started(runs / "beit", "--json") as (process, port):
        assert status(answer(port, request("GET", "/api/model"))) == 200
        process.send_signal(end)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert json.loads(out) == {"url": f"http://127.0.0.1:{port}/"}


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", str(tmp_path / "none"), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1, port {port}" in said
    assert "--port 0" in said


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "uvicorn" else whole(name, *rest)
    )
    with pytest.raises(UsageError, match=r"smalti serve needs uvicorn; pip install 'smalti\[serve\]'"):
        serve.main(Serve(str(runs / "crossed")))


def test_a_model_that_is_none_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) != 0
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
