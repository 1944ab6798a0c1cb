"""Completion: what the command offers, and what the shells make of it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smalti import cli
from smalti.completion import candidates, completion
from tests.cli.test_cli import error_of

SHELLS = ("bash", "zsh", "fish")


def offered(*words: str) -> list[str]:
    return [line.split("\t")[0] for line in candidates(list(words)).splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pret"], ["pretrain"]),
        (["--v"], ["--version"]),
        (["pretrain", "na"], ["nano"]),
        (["pretrain", "v"], []),  # vq has nothing for pretrain
        (["completion", ""], list(SHELLS)),
        (["pretrain", "nano", "--masking", "r"], ["rolled", "release", "random"]),
        (["pretrain", "nano", "--device", "c"], ["cpu", "cuda"]),
        (["pretrain", "nano", "--plan.re"], ["--plan.repeat"]),
        (["pretrain", "nano", "--plan.no"], ["--plan.no-repeat"]),
        (["evaluate", "run", "images", "--bas"], ["--baselines"]),
        (["evaluate", "run", ""], []),  # names of files, by the shell
        (["pretrain", "nano", "--plan.steps", ""], []),
        (["frobnicate", "--"], []),
    ],
)
def test_what_can_come_next(words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_a_candidate_has_its_help_beside_it() -> None:
    assert candidates(["info", "--js"]) == "--json\tthe results as one line of JSON, the last one"
    assert {"pretrain", "completion", "--help"} <= set(offered(""))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_understood_by_its_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-n"], input=completion([shell]), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def completed_by_bash(line: str) -> list[str]:
    """What bash would offer for the last word of a line."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    script = f"""smalti() {{ {sys.executable} -m smalti "$@"; }}
{completion(["bash"])}
COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _smalti; printf '%s\\n' "${{COMPREPLY[@]}}" """
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120).stdout.split()


def test_bash_offers_recipes_and_values() -> None:
    offered("")  # keeps the pages
    assert completed_by_bash("smalti pretrain na") == ["nano"]
    assert completed_by_bash("smalti pretrain nano --decoder ") == ["linear", "cross-attention"]


def test_fish_offers_recipes(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    offered("")
    (tmp_path / "smalti").write_text(f'#!/bin/sh\nexec {sys.executable} -m smalti "$@"\n')
    (tmp_path / "smalti").chmod(0o755)
    script = completion(["fish"]) + 'complete -C "smalti pretrain na"'
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["nano"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no shell given; there are: bash, zsh, fish"),
        (["zhs"], "no completion for 'zhs'; did you mean 'zsh'?; there are: bash, zsh, fish"),
    ],
)
def test_another_shell_is_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(["completion", *arguments], 2, capsys) == f"error: {text}"


def test_its_help_says_where_each_script_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"smalti completion {shell}" in printed for shell in SHELLS)
    assert "did you mean 'completion'?" in error_of(["completoin"], 2, capsys)


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == completion(["zsh"]) + "\n"
    assert cli.main(["--complete", "pretrain", "na"]) == 0
    assert capsys.readouterr().out == "nano\n"
