"""torch.compile for long runs, applied to each block, so that all blocks of a network share one compilation."""

import logging
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn

Compile: TypeAlias = Literal["auto", "on", "off"]

_PAYS_FROM = 2000
"""Number of steps from which `auto` compiles; that takes half a minute, and steps are about 1.4 times as fast."""


def should_compile(wanted: Compile, steps: int, device: torch.device) -> bool:
    """Resolve `auto`: True for runs that are long enough, on a CPU only where there is a C++ compiler."""
    if wanted != "auto":
        return wanted == "on"
    return steps >= _PAYS_FROM and (device.type == "cuda" or (device.type == "cpu" and has_compiler()))


def has_compiler() -> bool:
    """Whether there are a C++ compiler and Python's headers, which torch.compile needs on a CPU."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block in place, for fixed shapes; compilation takes place in the first step."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it announces that a CPU has no CUDA
    for block in blocks:
        block.compile(dynamic=False)
