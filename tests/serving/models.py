"""Served models: each kind once, and a client that asks them without a network."""

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from smalti.core.compute import choose_compute
from smalti.runs.serve import load_predictor
from smalti.serving.app import build
from smalti.serving.predictions import Predictor

LOCAL = "http://127.0.0.1"
CPU = choose_compute("cpu", "fp32")


def predictor_of(run: Path) -> Predictor:
    return load_predictor(str(run), CPU)


def client_of(predictor: Predictor, **options: Any) -> TestClient:
    return TestClient(build(predictor, None, **options), LOCAL, raise_server_exceptions=False)
