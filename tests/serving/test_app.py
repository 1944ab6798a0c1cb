"""The JSON API and its limits: every case of the web demo that is to be refused, and what is answered."""

import asyncio
import base64
import gc
import io
import itertools
import json
import resource
import struct
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette")

import httpx2
from starlette.testclient import TestClient

from smalti.core.errors import DataError, UsageError
from smalti.runs.embed import Embed
from smalti.runs.embed import main as embed
from smalti.runs.serve import Serve, load_nearest, load_predictor
from smalti.serving.app import build
from smalti.serving.limits import MAX_BODY
from smalti.serving.openapi import document
from smalti.serving.predictions import Predictor
from tests.serving.models import CPU, LOCAL, client_of, predictor_of

TOKEN = "0123456789abcdef0123456789abcdef"
PREDICT = {"image": "astronaut", "mask": {"patches": [5]}}


@pytest.fixture(scope="module")
def predictor(runs: Path) -> Predictor:
    return predictor_of(runs / "crossed")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> TestClient:
    return client_of(predictor)


def error_of(answer: httpx2.Response, status: int) -> str:
    """The one line of a refusal."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert found.keys() == {"error"}
    assert "\n" not in found["error"]
    assert len(found["error"]) <= 304
    assert answer.headers["x-content-type-options"] == "nosniff"
    return str(found["error"])


def image_file(kind: str = "PNG", side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(file, kind)
    return file.getvalue()


# ---- what is answered


def test_every_path_of_the_description_is_there_and_no_other(client: TestClient, predictor: Predictor) -> None:
    described = client.get("/api/openapi.json").json()
    assert described == json.loads(json.dumps(document()))
    routes = {route.path for route in build(predictor, None).routes if route.path.startswith("/api")}  # type: ignore[attr-defined]
    assert described["paths"].keys() | {"/api/openapi.json"} == routes
    for path, methods in described["paths"].items():
        for method in methods:
            answer = client.request(method, path.replace("{code}", "3"), json=PREDICT if method == "post" else None)
            assert answer.status_code in (200, 404, 415, 422), path


def matches(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is as the description says: the part of JSON Schema that it uses."""
    if "anyOf" in schema:
        return any(matches(value, choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list}
    if schema["type"] != "object":
        return isinstance(value, kinds[schema["type"]]) and (  # type: ignore[arg-type]
            schema["type"] != "array" or all(matches(item, schema["items"]) for item in value)
        )
    known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    return (
        isinstance(value, dict)
        and set(schema.get("required", [])) <= value.keys()
        and all(matches(item, known.get(name) or others) for name, item in value.items())
    )


def test_answers_are_as_described(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]

    def body_of(path: str, method: str) -> dict[str, Any]:
        found: dict[str, Any] = paths[path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        return found

    asked = {"/api/predict": PREDICT | {"samples": 1}, "/api/attention": PREDICT | {"layer": 1}}
    for path, body in asked.items():
        assert matches(body, paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"])
        assert matches(client.post(path, json=body).json(), body_of(path, "post"))
    assert matches(client.get("/api/model").json(), body_of("/api/model", "get"))
    assert matches(client.get("/api/codes/3").json(), body_of("/api/codes/{code}", "get"))
    sent = client.post("/api/image", content=image_file(), headers={"Content-Type": "image/png"})
    assert matches(sent.json(), body_of("/api/image", "post"))
    assert not matches({"code": 3}, body_of("/api/codes/{code}", "get"))


def test_an_image_is_sent_once_and_used_as_its_square(client: TestClient) -> None:
    sent = client.post("/api/image", content=image_file(side=37), headers={"Content-Type": "image/png"}).json()
    answer = client.post("/api/predict", json=PREDICT | {"image": sent["picture"]})
    assert answer.json()["pictures"]["original"] == sent["picture"]


def test_nearest_images_are_found_where_features_are_given(
    runs: Path, predictor: Predictor, client: TestClient, tmp_path: Path
) -> None:
    assert "--features" in error_of(client.post("/api/nearest", json={"image": "astronaut"}), 404)
    features = str(tmp_path / "features.npy")
    embed(Embed(str(runs / "crossed"), str(runs / "photos"), features, device="cpu", precision="fp32"))
    config = Serve(str(runs / "crossed"), features=features)
    with pytest.raises(DataError, match=r"nothing is opened there unasked; features\.npy says that its images are in "):
        load_nearest(config, predictor)
    config = replace(config, data=str(runs / "photos"))
    nearest = load_nearest(config, predictor)
    asking = TestClient(build(predictor, nearest), LOCAL)
    assert asking.get("/api/model").json()["features"] is True
    photo = base64.b64encode((runs / "photos" / "down" / "03.png").read_bytes()).decode()
    found = asking.post("/api/nearest", json={"image": photo, "count": 4}).json()["nearest"]
    assert found[0]["key"] == "down/03.png"
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert all(image["picture"].startswith("data:image/png;base64,") for image in found)
    assert len(found) == 4
    with pytest.raises(UsageError, match="another network made them"):
        load_nearest(config, predictor_of(runs / "beit"))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["image", "mask", "guesses", "samples", "temperature", "seed", "layer", "head", "patch", "count"]
)
ALMOST = st.fixed_dictionaries(
    {"image": st.sampled_from(["astronaut", "", "x", "data:,", "data:image/png;base64,AAAA"])},
    optional={
        "mask": ANYTHING
        | st.fixed_dictionaries({}, optional={"patches": st.lists(st.integers(-2, 17)), "ratio": ANYTHING}),
        "samples": ANYTHING | st.integers(-1, 9),
        "layer": ANYTHING | st.integers(-1, 5),
    },
)


@given(
    path=st.sampled_from(["predict", "attention", "nearest"]),
    body=ANYTHING | st.dictionaries(FIELDS, ANYTHING) | ALMOST,
)
def test_any_json_is_answered_or_refused_in_one_line(client: TestClient, path: str, body: Any) -> None:
    content = json.dumps(body).encode()
    answer = client.post(f"/api/{path}", content=content, headers={"Content-Type": "application/json"})
    if answer.status_code != 200:
        assert answer.status_code in (400, 404, 422), answer.text
        error_of(answer, answer.status_code)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(client: TestClient, content: bytes) -> None:
    for path, kind in (("predict", "application/json"), ("image", "application/octet-stream")):
        answer = client.post(f"/api/{path}", content=content, headers={"Content-Type": kind})
        error_of(answer, 400 if path == "predict" else 422) if answer.status_code != 422 else error_of(answer, 422)


def test_deep_json_and_numbers_of_thousands_of_digits_are_refused(client: TestClient) -> None:
    for content in (b"[" * 100_000, b'{"seed": ' + b"9" * 10_000 + b"}", b'{"image": NaN}', b'{"image": "\xff"}'):
        answer = client.post("/api/predict", content=content, headers={"Content-Type": "application/json"})
        assert error_of(answer, 400) == "the body is no JSON"


# ---- what is refused: the cases of a web demo


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/%252e%252e%252fetc/passwd",
        "//etc/passwd",
        "/..\\..\\x",
        "/page.js%00.png",
        "/page.js::$DATA",
        "/serving_evil/page.js",
        "/page.py",
        "/api/codes/..%2f..%2fx",
        "/api/codes/-1",
        "/%ff%fe",
    ],
)
def test_k02_k03_no_path_leads_to_a_file(client: TestClient, path: str) -> None:
    answer = client.get(f"{LOCAL}{path}")
    error_of(answer, 422 if answer.status_code == 422 else 404)


def test_k04_bodies_have_a_largest_size(client: TestClient) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    declared = client.post("/api/image", content=b"x", headers=kind | {"Content-Length": str(MAX_BODY + 1)})
    assert error_of(declared, 413) == "more than 16 MiB"
    chunks = (b"x" * (1 << 20) for _ in range(64))
    assert error_of(client.post("/api/image", content=chunks, headers=kind), 413) == "more than 16 MiB"
    for wrong in ("-1", "1e9", "9" * 40, "\u00b2"):
        odd: Any = kind | {"Content-Length": wrong.encode("utf-8")}
        answer = client.post("/api/image", content=b"x", headers=odd)
        assert answer.status_code in (400, 413)
    assert client.get("/api/model").status_code == 200


def test_k04_forms_are_not_read(client: TestClient) -> None:
    parts = {f"part{number}": "x" for number in range(1000)}
    assert "application/json" in error_of(client.post("/api/predict", data=parts), 415)
    assert "octet-stream" in error_of(client.post("/api/image", files=dict.fromkeys(parts, b"x")), 415)


def test_k04_a_body_that_trickles_in_is_given_up(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.serving.limits._SECONDS", 0.2)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.05)

    app = build(predictor, None)

    async def receive_slowly() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        stream = slow()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(stream), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/api/image", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        await stream.aclose()  # type: ignore[attr-defined]
        return sent

    sent = asyncio.run(receive_slowly())
    assert sent[0]["status"] == 408
    assert b"did not arrive" in sent[1]["body"]


def test_k05_bombs_and_damaged_images_are_refused(client: TestClient) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def claims(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(1 << 20))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    frames = io.BytesIO()
    first, *others = (Image.new("L", (8, 8), number % 256) for number in range(1000))
    first.save(frames, "GIF", save_all=True, append_images=others)
    whole = image_file()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind = {"Content-Type": "image/png"}
    for bomb in (claims(9000, 9000), claims(20_000, 20_000), claims(100_000, 100_000), claims(1, 1_000_000)):
        assert "pixels" in error_of(client.post("/api/image", content=bomb, headers=kind), 422)
    for damaged in (whole[: len(whole) // 2], whole[:40], claims(2000, 2000)):
        error_of(client.post("/api/image", content=damaged, headers=kind), 422)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
    assert client.post("/api/image", content=frames.getvalue(), headers=kind).status_code == 200, "its first frame"


def test_k06_other_sites_and_other_names_of_this_machine_are_refused(client: TestClient) -> None:
    for host in (
        "evil.example",
        "evil.example:8421",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "169.254.169.254",
        "",
        "[::2]",
    ):
        assert "127.0.0.1 and localhost" in error_of(client.get("/", headers={"Host": host}), 403)
    for host in ("127.0.0.1:8421", "localhost", "LOCALHOST:1", "[::1]:8421"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert "other sites" in error_of(client.post("/api/predict", json=PREDICT, headers=headers), 403)
    assert client.post("/api/predict", json=PREDICT, headers={"Origin": LOCAL}).status_code == 200
    plain = client.post("/api/predict", content=json.dumps(PREDICT), headers={"Content-Type": "text/plain"})
    assert "application/json" in error_of(plain, 415)
    assert "access-control-allow-origin" not in client.get("/api/model").headers
    assert error_of(client.options("/api/predict"), 405)


def test_k06_only_this_machine_is_listened_to_without_a_token() -> None:
    assert Serve("run").host == "127.0.0.1"
    assert all(Serve("run", host=host).is_local for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"))
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(UsageError, match="without a token"):
            Serve("run", host=host)
        assert not Serve("run", host=host, token=TOKEN).is_local
    for token in ("short", "x" * 15, "ü" * 20, "with spaces in it all", "line\n" * 5):
        with pytest.raises(UsageError, match="a token that is short, or has other characters"):
            Serve("run", token=token)


def test_k06_with_a_token_nothing_is_told_without_it(predictor: Predictor) -> None:
    client = client_of(predictor, token=TOKEN, local=False)
    assert client.get("/", headers={"Host": "workstation:8421"}).status_code == 200, "the page, which knows nothing"
    for headers in (
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": b"Bearer \xff"},
    ):
        for path in ("/api/model", "/api/openapi.json", "/api/nothing"):
            answer = client.get(path, headers=headers)  # type: ignore[arg-type]
            assert "token" in error_of(answer, 401)
            assert TOKEN not in answer.text
    assert client.get("/api/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_k07_nothing_active_is_taken_or_given(client: TestClient) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    polyglot = image_file("GIF") + b"<script>alert(1)</script>"
    for file in (svg, b"<!DOCTYPE html><script>alert(1)</script>", b"%PDF-1.4"):
        error_of(client.post("/api/image", content=file, headers={"Content-Type": "image/svg+xml"}), 422)
    answer = client.post("/api/image", content=polyglot, headers={"Content-Type": "image/gif"}).json()
    again = base64.b64decode(answer["picture"].removeprefix("data:image/png;base64,"))
    assert again.startswith(b"\x89PNG")
    assert b"script" not in again
    name = client.post("/api/predict", json={"image": "<script>alert(1)</script>"})
    error_of(name, 422)
    assert name.headers["content-type"] == "application/json"
    for path in ("/", "/page.js", "/page.css", "/style.css", "/api/model", "/nothing"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in headers
        assert "server" not in headers


def test_k08_k10_no_address_and_no_path_is_taken(client: TestClient, runs: Path) -> None:
    for image in (
        "http://127.0.0.1:1/x.png",
        "file:///etc/passwd",
        str(runs / "photos" / "down" / "03.png"),
        "~/x.png",
    ):
        error_of(client.post("/api/predict", json={"image": image}), 422)
    for field in ("model", "run", "tokenizer", "features", "path", "url"):
        answer = client.post("/api/predict", json=PREDICT | {field: str(runs / "beit")})
        assert f"unknown field body.{field}" in error_of(answer, 422)
    assert client.get("/api/model?model=/etc").json() == client.get("/api/model").json()


def test_k09_a_crowd_is_sent_away_and_leaves_nothing(predictor: Predictor) -> None:
    async def ask(app: Any, count: int) -> list[int]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=LOCAL, timeout=300) as client:
            answers = await asyncio.gather(*(client.post("/api/predict", json=PREDICT) for _ in range(count)))
            return [answer.status_code for answer in answers]

    app = build(predictor, None)
    found = asyncio.run(ask(app, 50))
    assert sorted(set(found)) == [200, 503]
    assert found.count(200) == 9, "one that is computed, and eight that wait"
    assert asyncio.run(ask(app, 9)) == [200] * 9, "there is room again"


def test_200_requests_eight_at_a_time_are_answered_each_with_its_own_and_memory_stays(predictor: Predictor) -> None:
    """It takes eight seconds of predictions."""
    client = client_of(predictor)

    def ask(number: int) -> tuple[list[int], str]:
        body = PREDICT | {"mask": {"patches": [number % 16, (number + 5) % 16]}, "samples": 2, "seed": number}
        answer = client.post("/api/predict", json=body).json()
        return answer["masked"], answer["pictures"]["predicted"]

    def all_of(numbers: range) -> list[tuple[list[int], str]]:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(ask, numbers))

    all_of(range(48))  # tiles are decoded once
    found, uses = [], [resident()]
    for part in (range(100), range(100, 200)):
        found += all_of(part)
        gc.collect()
        uses.append(resident())
    assert [masked for masked, _ in found] == [sorted([n % 16, (n + 5) % 16]) for n in range(200)]
    assert found[:16] == found[16:32] == [ask(number) for number in range(16)]
    # the allocator may take another arena once; what a request loses is lost in both parts
    assert min(late - early for early, late in itertools.pairwise(uses)) < 4 << 20


def resident() -> int:
    """Bytes of memory in use, from /proc."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("memory in use is read from /proc")
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def test_requests_are_computed_in_the_order_in_which_they_came(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []
    whole = Predictor.predict

    def noted(self: Predictor, asked: Any) -> Any:
        order.append(asked.seed)
        return whole(self, asked)

    monkeypatch.setattr(Predictor, "predict", noted)

    async def ask() -> None:
        app = build(predictor, None)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=LOCAL, timeout=300) as client:
            await asyncio.gather(*(client.post("/api/predict", json=PREDICT | {"seed": number}) for number in range(8)))

    asyncio.run(ask())
    assert order == list(range(8))


def test_k11_odd_headers_change_nothing(client: TestClient) -> None:
    ranges = "bytes=" + ",".join(f"{n}-{n}" for n in range(100_000))
    answer = client.get("/page.js", headers={"Range": ranges})
    assert (answer.status_code, answer.headers.get("content-range")) == (200, None)
    error_of(client.get("/%c3%28"), 404)


def test_k12_k17_what_goes_wrong_inside_is_told_to_the_terminal_alone(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret of /home/me\x1b[2J\nforged line")

    monkeypatch.setattr(Predictor, "predict", fail)
    answer = client_of(predictor).post("/api/predict", json=PREDICT)
    assert error_of(answer, 500) == "internal error 1; see the terminal"
    said = capsys.readouterr().err
    assert "error 1 of smalti serve" in said
    assert "secret of /home/me" in said
    assert "\x1b" not in said


def test_k13_nothing_is_written(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    big = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(big).save(file, "PNG")
    assert len(file.getvalue()) > 2 << 20
    assert client.post("/api/image", content=file.getvalue(), headers={"Content-Type": "image/png"}).status_code == 200
    assert client.post("/api/predict", json=PREDICT).status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_predict_is_refused(runs: Path) -> None:
    for run, what in (("tokenizer", "run of train-tokenizer"), ("classes", "run of finetune")):
        with pytest.raises(UsageError, match=what):
            load_predictor(str(runs / run), CPU)


def test_fashion_comes_first_where_it_was_learned(predictor: Predictor, runs: Path, tmp_path: Path) -> None:
    from smalti.runs.serve import _images

    names = list(_images(1, 28, True))
    assert len(names) == 18
    assert names[9] == "ankle boot"
    assert list(_images(3, 16, False)) == list(predictor.images)
    assert replace(predictor, images={}).facts()["images"] == []
