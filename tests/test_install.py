"""scripts/install.sh says in one line what is missing on a fresh machine."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install.sh"


def install(tmp_path: Path, python: str, path: str = "/usr/bin:/bin") -> "subprocess.CompletedProcess[str]":
    """Run the script in an empty folder with a stand-in for Python."""
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\n{python}\n")
    stub.chmod(0o755)
    command = ["/bin/sh", str(SCRIPT), str(stub), "default", "."]
    return subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("exit 1", "older than 3.11"),
        ('case "$2" in *version_info*) exit 0;; *) exit 1;; esac', "apt-get install python3-venv"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, python: str, said: str) -> None:
    done = install(tmp_path, python)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_without_a_compiler_installation_goes_on_with_a_note(tmp_path: Path) -> None:
    done = install(tmp_path, 'test "$2" != venv', path=str(tmp_path))
    assert "no C++ compiler" in done.stderr
    assert "error" not in done.stderr.splitlines()[0]
