"""torch.compile where it pays: block by block, so that one compilation serves all blocks of a network."""

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
"""Steps from which `auto` compiles: it takes half a minute and makes a step about 1.4 times as fast."""


def should_compile(wanted: Compile, steps: int, device: torch.device) -> bool:
    """Settle `auto`: long enough a run, and on a CPU a C++ compiler."""
    if wanted != "auto":
        return wanted == "on"
    return steps >= _PAYS_FROM and (device.type == "cuda" or (device.type == "cpu" and has_compiler()))


def has_compiler() -> bool:
    """Whether this machine has what torch.compile needs on a CPU: a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block in place; the first step of the first one takes the time. Shapes must not change."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it announces that a CPU has no CUDA
    for block in blocks:
        block.compile(dynamic=False)
