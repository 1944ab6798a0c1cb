"""Where and in which number format a run computes."""

import itertools
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core import compute
from smalti.core.compute import Compute, choose_compute
from smalti.core.errors import UsageError


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_named_precision_is_taken_without_measuring(name: compute.Precision, dtype: torch.dtype) -> None:
    chosen = choose_compute("cpu", name)
    assert (chosen.device.type, chosen.dtype, chosen.gflops) == ("cpu", dtype, ())


@pytest.mark.parametrize(("bf16", "dtype"), [(149.0, torch.float32), (151.0, torch.bfloat16)])
def test_auto_takes_bf16_where_it_is_one_and_a_half_times_as_fast(
    monkeypatch: pytest.MonkeyPatch, bf16: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(compute, "_gflops", lambda kind, _: bf16 if kind == torch.bfloat16 else 100.0)
    chosen = choose_compute("cpu")
    assert chosen.dtype == dtype
    assert ("no fast bf16 units" in chosen.describe()) == (dtype == torch.float32)


def test_a_mac_computes_on_its_gpu_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    chosen = choose_compute()
    assert (chosen.device_kind, chosen.precision) == ("mps", "fp32")


@pytest.mark.parametrize(("major", "precision"), [(7, "fp32"), (8, "bf16"), (9, "bf16")])
def test_a_gpu_computes_in_bf16_where_it_has_units_for_it_and_never_in_tf32(
    monkeypatch: pytest.MonkeyPatch, major: int, precision: str
) -> None:
    """A V100 and a T4, of capability 7, have tensors of bf16, and no products of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    chosen = choose_compute("cuda")
    assert (chosen.device_kind, chosen.precision) == ("cuda", precision)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_on_macos_memory_is_counted_in_bytes_and_no_glibc_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kilobytes = compute.peak_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert compute.peak_memory() <= kilobytes / 1000
    assert not compute.keep_freed_memory()


def test_what_is_chosen_here_is_told_for_a_bug_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_gflops", lambda kind, _: 100.0)
    about = compute.about_compute()
    assert about["compute"] == choose_compute().describe()
    assert about["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert all(about.values())


def test_work_that_the_clock_books_late_is_not_taken_for_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 2 ms, on a clock that moves by 4 ms: now and then a product seems to take no time."""
    readings = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: next(readings) // 2 * 0.004)
    speed = compute._gflops.__wrapped__(torch.float32, 1, size=1) * 1e9 / 2
    assert speed == pytest.approx(500, rel=0.1)


@pytest.mark.parametrize(
    ("processors", "told"), [(2, "2 threads"), (1, "2 threads for 1 processor: OMP_NUM_THREADS=1 ")]
)
def test_more_threads_than_a_container_has_processors_are_said(
    monkeypatch: pytest.MonkeyPatch, processors: int, told: str
) -> None:
    monkeypatch.setattr(compute, "usable_processors", lambda: processors)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    about = Compute(torch.device("cpu"), torch.float32).describe()
    assert about.startswith(f"cpu in fp32, {told}")
    assert ("OMP" in about) == (processors == 1)


def test_a_format_without_units_is_timed_by_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX2 alone multiplies in bf16 at 1 GFLOP/s: seventeen products took 39 seconds."""
    readings = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: 2.0 * next(readings))
    assert compute._gflops.__wrapped__(torch.float32, 1, size=1) == pytest.approx(2 / 2.0 / 1e9)
    assert next(readings) == 2


def test_products_are_timed_once_for_each_number_of_threads() -> None:
    before = compute._gflops.cache_info().misses
    speeds = [compute._gflops(torch.float32, threads, 8, 1e-3, 1) for threads in (101, 101, 102)]
    assert compute._gflops.cache_info().misses == before + 2
    assert speeds[0] == speeds[1]


def test_copies_are_waited_for_where_memory_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        asked.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Tensor, "to", to)
    for kind in ("cpu", "mps", "cuda"):
        compute.on_device(torch.zeros(2), torch.device(kind))
    assert asked == [("cpu", False), ("mps", False), ("cuda", True)]


def test_autocast_multiplies_in_the_chosen_format() -> None:
    a = torch.ones(2, 2)
    with Compute(torch.device("cpu"), torch.bfloat16).autocast():
        assert (a @ a).dtype == torch.bfloat16
    with Compute(torch.device("cpu"), torch.float32).autocast():
        assert (a @ a).dtype == torch.float32


def test_a_device_that_is_not_there_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no cuda device on this machine; use --device auto"):
        choose_compute("cuda", "fp32")


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cuda:0", "auto", "device is 'cuda:0'; there are: auto, cpu, cuda, mps"),
        ("cpu", "bfloat16", "precision is 'bfloat16'; there are: auto, bf16, fp32"),
    ],
)
def test_an_unknown_device_or_precision_is_not_taken_for_another_one(device: Any, precision: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        choose_compute(device, precision)
    assert str(error.value) == message
