"""What a prediction of `smalti serve` takes, from the request to the last byte, and how memory behaves.

    python benchmarks/serve.py --model runs/demo/pretrain --json

Predictions have a mask of their own each, five guesses of every masked patch and four samples, as the page asks for
them. `alone_ms` and `p95_ms` are the median and the 95th percentile of requests one after another, `cpu_ms` is the
processor time of one, client included; `crowd_ms` is the median of 200 requests, eight at a time, and
`grown_mb` the memory that these added.
"""

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import uvicorn

from smalti.core.compute import Precision, choose_compute
from smalti.runs.serve import load_predictor
from smalti.serving.app import build


@contextmanager
def served(model: str, precision: Precision) -> Iterator[int]:
    """The port at which the model is served, in this process."""
    app = build(load_predictor(model, choose_compute("cpu", precision)), None)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def ask(port: int, image: str, seed: int) -> float:
    """Milliseconds of one prediction."""
    began = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port)
    body = json.dumps(
        {"image": image, "mask": {"seed": seed, "ratio": 0.4 + seed % 5 / 10}, "samples": 4, "seed": seed}
    )
    connection.request("POST", "/api/predict", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.read()
    connection.close()
    assert answer.status == 200, found
    return 1000 * (time.perf_counter() - began)


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(model: str, precision: Precision, count: int) -> dict[str, float]:
    """All figures."""
    with served(model, precision) as port:
        for seed in range(20):
            ask(port, "coffee", seed)
        spent = time.process_time()
        alone = [ask(port, "coffee", seed) for seed in range(count)]
        spent = time.process_time() - spent
        before = resident()
        with ThreadPoolExecutor(8) as threads:
            crowd = list(threads.map(lambda seed: ask(port, "coffee", seed), range(200)))
        return {
            "alone_ms": statistics.median(alone),
            "p95_ms": statistics.quantiles(alone, n=20)[-1],
            "cpu_ms": 1000 * spent / count,
            "crowd_ms": statistics.median(crowd),
            "grown_mb": (resident() - before) / 1e6,
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo/pretrain")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.model, given.precision, given.count)
    if given.json:
        print(json.dumps(found))
    else:
        print("  ".join(f"{name} {value:.1f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
