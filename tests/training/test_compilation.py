"""When compiling pays, and what is compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smalti.core import compute
from smalti.core.compute import Compile, should_compile
from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention, Linear
from smalti.runs.pretrain_config import Pretrain
from smalti.training.targets import Pixels, Tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize(("wanted", "expected"), [("on", True), ("off", False)])
def test_what_is_asked_for_is_done(wanted: Compile, expected: bool) -> None:
    assert should_compile(wanted, 1, CPU) is expected


@pytest.mark.parametrize(
    ("steps", "compiler", "expected"), [(10**6, True, True), (10**6, False, False), (10, True, False)]
)
def test_auto_compiles_long_runs_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch, steps: int, compiler: bool, expected: bool
) -> None:
    monkeypatch.setattr(compute, "has_compiler", lambda: compiler)
    assert should_compile("auto", steps, CPU) is expected


@pytest.mark.parametrize(
    ("capability", "modules", "programs", "expected"),
    [
        ((8, 0), ["triton"], ["gcc"], True),
        ((8, 0), ["triton"], ["clang"], True),
        ((8, 0), ["triton"], [], False),  # a container without a compiler: Triton would stop the run at its first step
        ((8, 0), [], ["gcc"], False),
        ((6, 1), ["triton"], ["gcc"], False),
    ],
)
def test_auto_compiles_for_a_gpu_where_triton_can(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capability: tuple[int, int],
    modules: list[str],
    programs: list[str],
    expected: bool,
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr(compute, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert should_compile("auto", 10**6, torch.device("cuda")) is expected
    assert not should_compile("auto", 10**6, torch.device("mps"))


@pytest.mark.parametrize(
    ("decoder", "target", "wanted", "expected"),
    [
        (CrossAttention(), Tokens(), "on", True),
        (CrossAttention(), Tokens(), "off", False),
        (CrossAttention(), Pixels(), "on", False),
        (Linear(), Tokens(), "on", False),
    ],
)
def test_the_loss_is_compiled_where_no_run_of_old_has_to_keep_its_bits(
    decoder: Linear | CrossAttention, target: Tokens | Pixels, wanted: Compile, expected: bool
) -> None:
    run = Pretrain(decoder=decoder, target=target, masking=Random(ratio=0.75), compile=wanted)
    assert run.compiles_loss(CPU) is expected


LOSS = """
import torch
from torch._dynamo.utils import counters

from smalti.core.contracts import Batch
from smalti.training.targets import CompiledTokens, Tokens

rng = torch.Generator().manual_seed(0)
rows, patches, masked, codes = 4, 16, 6, 100
index = torch.rand(rows, patches, generator=rng).argsort(1)[:, :masked]
weight = torch.ones(rows, masked)
weight[0, 4:] = 0
ids = torch.randint(codes, (rows, patches), generator=rng)
image, key = torch.zeros(rows, 3, 4, 4, dtype=torch.uint8), torch.arange(rows)
batch = Batch(image=image, index=key, key=key, ids=ids, mask_index=index, mask_weight=weight)
scores = torch.randn(rows, masked, codes, generator=rng).bfloat16()
compiled = CompiledTokens()
for with_metrics in (False, True):
    found = []
    for target in (Tokens(), compiled):
        given = scores.clone().requires_grad_()
        output = target(given, batch, weight, with_metrics)
        output.loss_sum.backward()
        found.append((output.loss_sum.detach(), output.weight, output.metrics, given.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
assert counters["stats"]["unique_graphs"] == 1
assert not counters["graph_break"]
for count in (1, 3):  # measured, in batches of any size: nothing is compiled again, and the bits are those without
    some = Batch(image=image[:count], index=key[:count], key=key[:count], ids=ids[:count], mask_index=index[:count],
                 mask_weight=weight[:count])
    measured, usual = (target(scores[:count], some, weight[:count]).loss_sum for target in (compiled, Tokens()))
    assert measured == usual
assert counters["stats"]["unique_graphs"] == 1
"""


@pytest.mark.slow
def test_a_compiled_loss_is_that_of_tokens() -> None:
    """In a process of its own: checked annotations do not compile, which takes seconds."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    run = subprocess.run([sys.executable, "-c", LOSS], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
