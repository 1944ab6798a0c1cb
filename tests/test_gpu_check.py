"""The script for a machine with a GPU, on a processor: every check runs, and what fails is said."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it finds smalti and benchmarks by itself."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module, before = module_from_spec(spec), list(sys.path)
    sys.modules["gpu_check"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    del sys.modules["gpu_check"]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("machine", {"tflops_bf16", "torch"}),
        ("numbers", {"loss, Linear, absolute, float32", "gradient, CrossAttention, block_relative, bfloat16"}),
        ("resume", {"the same run twice", "stopped and resumed"}),
        ("one_rank", {"DDP, difference of the loss"}),
        ("steps", {"tiny, CrossAttention: images a second", "tiny, Linear: share of the peak"}),
        ("tokenizers", {"encoding: images a second", "training: images a second"}),
        ("loader", {"images a second"}),
    ],
)
def test_every_check_runs_on_a_processor_and_finds_nothing_wrong(
    script: ModuleType, name: str, figures: set[str]
) -> None:
    found = script.run_check(name, script.Machine(torch.device("cpu"), True))
    assert (found.wrong, found.skipped) == ([], "")
    assert figures <= set(found.figures)
    if name == "resume":
        assert set(found.figures.values()) == {0.0}


def test_what_is_beyond_its_bound_and_what_raises_is_wrong(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = script.Found()
    found.expect("loss", 0.5, 0.1)
    found.expect("nan", float("nan"), 0.1)
    assert found.wrong == ["loss is 0.5, at most 0.1 was expected", "nan is nan, at most 0.1 was expected"]

    def broken(where: object, home: Path) -> object:
        raise RuntimeError("an illegal\n  memory access")

    monkeypatch.setitem(script.CHECKS, "machine", broken)
    where = script.Machine(torch.device("cpu"), True)
    assert script.run_check("machine", where).wrong == ["RuntimeError: an illegal memory access"]


def test_files_are_written_after_each_check_and_what_there_is_no_time_for_is_said(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(name: str, *_: object) -> object:
        if name != "machine":
            assert set(json.loads((tmp_path / "gpu_check.json").read_text())) == {"machine"}
            now[0] = 1e9
            return script.Found(wrong=["hangs"])
        return script.Found({"tflops_bf16": 1.5})

    now = [0.0]
    monkeypatch.setattr(script, "run_apart", apart)
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    found = script.check_all(tmp_path, "cpu", True, 1)
    assert list(found) == list(script.CHECKS)
    assert found["peers"].skipped == "no time left"
    page = (tmp_path / "README.md").read_text()
    assert "| tflops_bf16 | 1.5 |" in page
    assert "## tests: **wrong**" in page
    assert "- wrong: hangs" in page
    assert "## loader: skipped: no time left" in page


def test_a_check_that_does_not_end_or_is_killed_costs_its_own_figures_alone(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.sys, "executable", "/bin/false")
    assert script.run_apart("machine", "cpu", True, 60).wrong == ["the process ended with 1"]
    monkeypatch.setattr(script.sys, "executable", "yes")
    monkeypatch.setattr(script.subprocess, "run", _hangs)
    assert script.run_apart("machine", "cpu", True, 3).wrong == ["not finished after 3 seconds"]


def _hangs(command: list[str], timeout: float, check: bool) -> None:
    import subprocess

    raise subprocess.TimeoutExpired(command, timeout)
