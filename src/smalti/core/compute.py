"""The device and the number format of a run; on a CPU the faster format is found by timing both."""

import time
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch

from smalti.core.allocator import keep_freed_memory
from smalti.core.errors import UsageError

Precision: TypeAlias = Literal["auto", "bf16", "fp32"]
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]

_WORTH_IT = 1.5
"""bf16 is chosen where its matrix products are at least this much faster than fp32, which pays for the conversions."""


@dataclass(frozen=True)
class Compute:
    """Device and number format of a run.

    Attributes:
        device: where tensors live.
        dtype: bfloat16 or float32, for matrix products and convolutions under autocast; weights and sums stay float32.
        gflops: measured speed of matrix products in GFLOP/s, as (format, speed); empty where nothing was measured.
    """

    device: torch.device
    dtype: torch.dtype
    gflops: tuple[tuple[str, float], ...] = ()

    @property
    def precision(self) -> Precision:
        """The number format by its name in configurations."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def device_kind(self) -> Device:
        """The device by its name in configurations."""
        return cast(Device, self.device.type)

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def describe(self) -> str:
        """One line for the console."""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        speeds = "".join(f", {key} {value:.0f} GFLOP/s" for key, value in self.gflops)
        slow = speeds and self.precision == "fp32"
        cost = ", no fast bf16 units: two to four times fewer steps than with them" if slow else ""
        return f"{self.device.type} in {self.precision}{threads}{speeds}{cost}"


def choose_compute(device: Device = "auto", precision: Precision = "auto") -> Compute:
    """Resolve `auto`: the best available device, and bf16 where its matrix products are 1.5 times as fast as fp32.

    On a CPU, matrix products in both formats are timed, for at most two seconds, and freed memory is kept for the next
    step (`core/allocator.py`). On a GPU, bf16 is chosen where the device supports it.

    Raises:
        UsageError: the named device is not available.
    """
    chosen = _choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if precision != "auto":
        return Compute(chosen, torch.bfloat16 if precision == "bf16" else torch.float32)
    if chosen.type != "cpu":
        fast = chosen.type == "cuda" and torch.cuda.is_bf16_supported()
        return Compute(chosen, torch.bfloat16 if fast else torch.float32)
    fp32, bf16 = _gflops(torch.float32), _gflops(torch.bfloat16)
    dtype = torch.bfloat16 if bf16 > _WORTH_IT * fp32 else torch.float32
    return Compute(chosen, dtype, (("fp32", fp32), ("bf16", bf16)))


def _choose_device(name: Device) -> torch.device:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in present if present[kind]))
    if not present[name]:
        raise UsageError(f"no {name} device on this machine", fix="use --device auto")
    return torch.device(name)


def _gflops(dtype: torch.dtype, size: int = 1024, seconds: float = 0.05, rounds: int = 16) -> float:
    """Speed of matrix products on all threads, in GFLOP/s, by processor time, as other processes may be running.

    The best of `rounds`; each is long compared with the few milliseconds by which the system accounts for the time of
    other threads too late.
    """
    a = torch.ones(size, size, dtype=dtype)
    a @ a
    best = 0.0
    for _ in range(rounds):
        began, spent, products = time.process_time(), 0.0, 0
        while spent < seconds:
            a @ a
            products, spent = products + 1, time.process_time() - began
        best = max(best, products / spent)
    return 2 * size**3 * torch.get_num_threads() * best / 1e9
