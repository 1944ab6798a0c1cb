"""When compiling pays."""

import pytest
import torch

from smalti.core import compute
from smalti.core.compute import Compile, should_compile

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
