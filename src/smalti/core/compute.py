"""What a run computes with: device, number format, compiler, memory, threads and processes.

On a CPU the faster number format is found by timing both.
"""

import ctypes
import logging
import os
import resource
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from smalti.core.errors import UsageError
from smalti.core.machine import usable_processors
from smalti.core.ranks import world_size

F = TypeVar("F", bound=Callable[..., Any])

Precision: TypeAlias = Literal["auto", "bf16", "fp32"]
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]

_MIN_BF16_SPEEDUP = 1.5
"""bf16 is chosen where its matrix products are at least this much faster than fp32, which pays for the conversions."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""
_NEVER = 2**31 - 1
Compile: TypeAlias = Literal["auto", "on", "off"]
_MIN_COMPILED_STEPS = 2000
"""Number of steps from which `auto` compiles; that takes half a minute, and steps are about 1.4 times as fast."""


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
        threads = f", {_threads()}" if self.device.type == "cpu" else ""
        speeds = "".join(f", {key} {value:.0f} GFLOP/s" for key, value in self.gflops)
        slow = speeds and self.precision == "fp32"
        cost = ", no fast bf16 units: two to four times fewer steps than with them" if slow else ""
        return f"{self.device.type} in {self.precision}{threads}{speeds}{cost}"


def choose_compute(device: Device = "auto", precision: Precision = "auto") -> Compute:
    """Resolve `auto`: the best available device, and bf16 where its matrix products are 1.5 times as fast as fp32.

    On a CPU, matrix products in both formats are timed, for about two seconds and once in a process, and freed memory
    is kept for the next step (`keep_freed_memory`). On a GPU, bf16 is chosen where the device has units for it: torch
    emulates it on others (V100, T4), more slowly than float32. cuDNN's convolutions are told to compute float32 in
    float32, and not in TF32, of ten bits, as they would.

    Raises:
        UsageError: the named device is not available, or device or precision is none of those that there are.
    """
    for what, given, known in (("device", device, get_args(Device)), ("precision", precision, get_args(Precision))):
        if given not in known:
            raise UsageError(f"{what} is {given!r}", fix=f"there are: {', '.join(known)}")
    chosen = _choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    if chosen.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    if precision != "auto":
        return Compute(chosen, torch.bfloat16 if precision == "bf16" else torch.float32)
    if chosen.type != "cpu":
        fast = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return Compute(chosen, torch.bfloat16 if fast else torch.float32)
    fp32, bf16 = (_gflops(kind, torch.get_num_threads()) for kind in (torch.float32, torch.bfloat16))
    dtype = torch.bfloat16 if bf16 > _MIN_BF16_SPEEDUP * fp32 else torch.float32
    return Compute(chosen, dtype, (("fp32", fp32), ("bf16", bf16)))


def about_compute() -> dict[str, str]:
    """What `auto` chooses on this machine and from what, for a bug report."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "compute": choose_compute().describe(),
        "threads": f"{torch.get_num_threads()} of {usable_processors()} processors",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "GPUs": ", ".join(gpus) or "none that torch can use",
        "CUDA of torch": torch.version.cuda or "none",
        "C++ compiler": "yes" if has_compiler() else "none, so nothing is compiled on a CPU",
    }


def _choose_device(name: Device) -> torch.device:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in present if present[kind]))
    if not present[name]:
        raise UsageError(f"no {name} device on this machine", fix="use --device auto")
    return torch.device(name)


@cache
def _gflops(dtype: torch.dtype, threads: int, size: int = 1024, seconds: float = 0.05, rounds: int = 16) -> float:
    """Speed of matrix products in GFLOP/s, by processor time, as other processes may be running.

    The best of `rounds`; each is long compared with the few milliseconds by which the system accounts for the time of
    other threads too late. The first also starts threads and prepares the product. No other follows once every thread
    has had its time for all of them: without units for bf16, as on processors with AVX2 alone, a product takes seconds.

    Args:
        threads: those that torch uses; their times add up in processor time.
    """
    a = torch.ones(size, size, dtype=dtype)
    best, total = 0.0, 0.0
    for _ in range(1 + rounds):
        began, spent, products = time.process_time(), 0.0, 0
        while spent < seconds:
            a @ a
            products, spent = products + 1, time.process_time() - began
        best, total = max(best, products / spent), total + spent
        if total > rounds * seconds * threads:
            break
    return 2 * size**3 * threads * best / 1e9


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`, copied where it is elsewhere.

    To a GPU of CUDA it is copied from pinned memory, and the program goes on: from any other memory it would wait until
    the GPU has done all work that it was given before. Other devices have it when this returns: what it is copied from
    may be freed or written again.
    """
    to_cuda = device.type == "cuda" and value.device.type == "cpu"
    return (value.pin_memory() if to_cuda else value).to(device, non_blocking=to_cuda)


def rows_on_device(table: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """The rows `index` of a large tensor on a CPU, on `device`; as by `on_device`, and copied once less.

    They are gathered straight into the memory that they are sent from. `table[index]` takes ten times as long.
    """
    to_cuda = device.type == "cuda"
    rows = torch.empty(len(index), *table.shape[1:], dtype=table.dtype, pin_memory=to_cuda)
    return torch.index_select(table, 0, index, out=rows).to(device, non_blocking=to_cuda)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: a GPU of Apple's does not."""
    return device.type != "mps"


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in this process, for the next tensor of the same size.

    Every training step frees and allocates the same large tensors. By default glibc returns such blocks to the
    operating system at once and gets them back as pages that must be zeroed: 7 to 12 % of a step on a CPU, a fifth of
    loading a batch. With this setting the process stays at its peak memory until it ends.

    Returns:
        Whether the setting was accepted; only glibc on Linux has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def should_compile(wanted: Compile, steps: int, device: torch.device) -> bool:
    """Resolve `auto`: True for runs that are long enough, where torch can compile for the device."""
    if wanted != "auto":
        return wanted == "on"
    return steps >= _MIN_COMPILED_STEPS and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a compiler, and for a GPU Triton and units of 2017 or later."""
    if device.type == "cuda":
        new_enough = torch.cuda.get_device_capability(device) >= (7, 0)
        return new_enough and find_spec("triton") is not None and has_compiler(("gcc", "clang"))
    return device.type == "cpu" and has_compiler()


def has_compiler(names: tuple[str, ...] = ("c++", "g++", "clang++")) -> bool:
    """Whether there are Python's headers and one of these compilers: of C++ for a CPU, of C for Triton on a GPU."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(map(shutil.which, names))


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block in place, for fixed shapes; compilation takes place in the first step."""
    _quiet_compiler()
    for block in blocks:
        block.compile(dynamic=False)


def compiled(function: F) -> F:
    """The function, compiled for fixed shapes where it is first called."""
    _quiet_compiler()
    return cast(F, torch.compile(function, dynamic=False))


def _quiet_compiler() -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it announces that a CPU has no CUDA


@dataclass(frozen=True)
class RunEnvironment:
    """Numbers of threads and processes, saved in checkpoints; with others, the bits of a resumed run differ."""

    threads: int
    world_size: int

    @staticmethod
    def now() -> "RunEnvironment":
        """Those of this process; call it in the main thread, as torch's thread count in a new thread may differ."""
        return RunEnvironment(torch.get_num_threads(), world_size())

    def differences(self, now: "RunEnvironment", *, on_cpu: bool) -> list[str]:
        """Messages that say what has changed; threads are compared only where computation is on a CPU."""
        told = []
        if on_cpu and self.threads != now.threads:
            told.append(f"{_counted(self.threads, 'thread')} then, {now.threads} now (OMP_NUM_THREADS)")
        if self.world_size != now.world_size:
            told.append(f"{_counted(self.world_size, 'process', 'es')} then, {now.world_size} now")
        return told


def _threads() -> str:
    """The number of threads; where a container has a quota of fewer processors, which torch does not see, that too."""
    threads, processors = torch.get_num_threads(), usable_processors()
    fewer = f" for {_counted(processors, 'processor')}: OMP_NUM_THREADS={processors} is faster"
    return f"{threads} threads{fewer if threads > processors else ''}"


def _counted(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
