"""A benchmark without a process of its own, where another one has imported torch already."""

import runpy
import sys
from pathlib import Path

import pytest


def run(call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python SCRIPT ...` prints; `call` is that command."""
    _, script, *options = call
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [script, *options])
        patch.syspath_prepend(str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    return capsys.readouterr().out
