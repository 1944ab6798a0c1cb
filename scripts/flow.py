"""The way of an image from `smalti pretrain` to the loss, as a tree of source files: who calls whom in a step.

    python scripts/flow.py            # print it
    python scripts/flow.py --write    # and put it into ARCHITECTURE.md

A few steps of a small streamed run are made in this process, and every function of smalti that is entered while one of
them is computed, up to its loss, is noted. A file stands below the one that calls it first; `· N` are the calls of a
step by other files. Backward pass and optimiser are not in it, nor is what happens once, before the first step.
"""

import argparse
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

import smalti
from smalti.cli import main as smalti_main

SOURCE = Path(smalti.__file__).parent
PAGE = SOURCE.parents[1] / "ARCHITECTURE.md"
BEGIN, END = "<!-- flow:begin -->\n", "<!-- flow:end -->"
_FIRST, _LAST = 3, 5
"""The steps that are watched; in the first ones something is still prepared."""

_COMMON = shlex.split(
    "--device cpu --precision fp32 --data.side 16 --plan.batch-size 8 --plan.log-every 1000 --plan.repeat"
)
_TOKENIZER = shlex.split("--tokenizer.vocab-size 16 --tokenizer.stride 4 --tokenizer.width 8 --plan.steps 2")
_NETWORK = shlex.split(
    "--backbone.img-size 16 16 --backbone.patch-size 4 --backbone.embed-dim 16 --backbone.depth 2"
    " --backbone.num-heads 2 --compile off --accept-tokenizer --no-reference --data.memory stream --data.num-workers 0"
)


class Flow:
    """Watches calls between files while `watching`.

    Attributes:
        callers: the file that called each file first, in the order of these calls.
        calls: how often functions of a file were called from other files.
    """

    def __init__(self) -> None:
        self.steps, self.watching = 0, False
        self.callers: dict[str, str | None] = {}
        self.calls: Counter[str] = Counter()

    def on_call(self, frame: FrameType, event: str, _: Any) -> None:
        """A profiling function (`sys.setprofile`)."""
        if event != "call" or not self.watching or (name := file_of(frame)) is None:
            return
        caller = _caller(frame)
        if caller != name:
            self.calls[name] += 1
            for callee, its_caller in reversed(list(_chain(frame))):
                self.callers.setdefault(callee, its_caller)

    def on_step(self, *_: object) -> None:
        """Called after each step of the optimiser."""
        self.steps += 1
        self.watching = _FIRST <= self.steps < _LAST

    def tree(self) -> str:
        """A line for each file."""
        steps = _LAST - _FIRST
        lines = []
        for name, depth in self._walk(None, 0):
            many = round(self.calls[name] / steps)
            lines.append(f"{'  ' * depth}{name}" + (f" · {many}" if many > 1 else ""))
        return "\n".join(lines)

    def _walk(self, caller: str | None, depth: int) -> Iterator[tuple[str, int]]:
        for name in [name for name, its_caller in self.callers.items() if its_caller == caller]:
            yield name, depth
            yield from self._walk(name, depth + 1)


def file_of(frame: FrameType) -> str | None:
    """The file of smalti that a function is in; None for others and for the bodies of modules."""
    name = frame.f_code.co_filename
    inside = name.startswith(f"{SOURCE}/") and frame.f_code.co_name != "<module>"
    return name[len(str(SOURCE)) + 1 :] if inside else None


def _caller(frame: FrameType) -> str | None:
    """The file of smalti that a function was called from."""
    above = frame.f_back
    while above is not None:
        if (name := file_of(above)) is not None:
            return name
        above = above.f_back
    return None


def _chain(frame: FrameType) -> Iterator[tuple[str, str | None]]:
    """Every file on the stack with the one that called it, the innermost first; a file that calls itself is one."""
    at: FrameType | None = frame
    while at is not None:
        name = file_of(at)
        if name is not None and (caller := _caller(at)) != name:
            yield name, caller
        at = at.f_back


def watched(folder: Path) -> Flow:
    """A small streamed run, watched."""
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.jpg")
    at, tokenizer, flow = ["--data", str(folder / "photos")], str(folder / "tokenizer"), Flow()
    if smalti_main(["train-tokenizer", "tiny", *_COMMON, *_TOKENIZER, *at, "--out", tokenizer]):
        raise SystemExit("the tokenizer of the small run has failed")
    hook = register_optimizer_step_post_hook(flow.on_step)
    backward = torch.autograd.backward

    def unwatched(*arguments: Any, **options: Any) -> None:
        flow.watching = False
        backward(*arguments, **options)

    torch.autograd.backward = unwatched
    sys.setprofile(flow.on_call)
    where = [*at, "--tokenizer", tokenizer, "--out", str(folder / "run"), "--plan.steps", str(_LAST + 1)]
    try:
        code = smalti_main(["pretrain", "tiny", *_COMMON, *_NETWORK, *where])
    finally:
        sys.setprofile(None)
        torch.autograd.backward = backward
        hook.remove()
    if code:
        raise SystemExit("the small run has failed")
    return flow


def main() -> None:
    """Print the tree, and write it where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into ARCHITECTURE.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = watched(Path(folder)).tree()
    print(tree)
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}```\n{tree}\n```\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
