"""The benchmark of a pretraining step: what it counts, and that its last line is one JSON object."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smalti.models.decoder import Linear

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "pretrain_step.py"
SMALL = ["--json", "--batch", "2", "--depth", "1", "--rounds", "1", "--compile", "off", "--threads", "1"]


def figures_of(*flags: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARK), *SMALL, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    return runpy.run_path(str(BENCHMARK))["CASES"]


def test_a_vit_b_takes_104_gflop_an_image(cases: dict[str, Any]) -> None:
    """34.6 forward: 32 in linear layers, 1.4 in attention, 0.9 in the head, 0.2 in the patches."""
    base, tiny = (replace(cases[name], decoder=Linear()) for name in ("base", "tiny"))
    assert base.masking.count((14, 14)) == 75
    assert base.flops() / 1e9 == pytest.approx(104, abs=0.5)
    assert tiny.flops() / 1e9 == pytest.approx(2.14, abs=0.02)


def test_a_vit_b_that_sees_a_quarter_takes_30(cases: dict[str, Any]) -> None:
    """Forward: 50 positions in 12 blocks, 74 queries 512 wide, and their logits over 8192 tokens."""
    blocks = 12 * (24 * 768**2 * 50 + 4 * 50**2 * 768)
    read = 2 * 50 * 768 * 512 + 2 * 512**2 * (10 * 74 + 2 * 50) + 4 * 74 * 50 * 512
    head, patches = 2 * 74 * 512 * 8192, 2 * 196 * 768 * 768
    assert cases["base"].flops() == pytest.approx(3 * (blocks + read + head) + 2 * patches)


@pytest.mark.slow
def test_tiny_is_measured_with_and_without_its_tokenizer() -> None:
    figures = figures_of("--model", "tiny", "--clock", "processor")
    assert {"ratio_vs_compiled_bf16", "ratio_vs_compiled_bf16_with_tokens", "peak_fraction"} <= figures.keys()
    assert figures["images_per_second"] > 0
    assert figures["seconds"].keys() == {"smalti", "compiled_bf16", "tokens_smalti", "tokens_compiled_bf16"}


def test_the_network_of_transformers_is_a_peer() -> None:
    pytest.importorskip("transformers")
    figures = figures_of("--model", "tiny", "--against", "transformers_bf16", "transformers_fp32")
    assert figures["ratio_vs_transformers_bf16"] > 0
    assert figures["ratio_vs_transformers_fp32"] > 0
    assert "transformers" in figures["versions"]


def test_threads_that_wait_are_not_counted_as_work() -> None:
    command = [sys.executable, str(BENCHMARK), *SMALL, "--threads", "2", "--clock", "processor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "--clock processor with --threads 1" in done.stderr
