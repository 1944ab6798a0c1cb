"""The wheel and the sdist: built, complete, and a demo from the installed wheel; minutes, as both are built anew."""

import os
import runpy
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts/check_wheel.py"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    place = tmp_path_factory.mktemp("built")
    venv.create(place / "builder", with_pip=True)
    subprocess.run([place / "builder" / "bin" / "pip", "install", "--quiet", "build"], check=True)
    command: list[str | Path] = [place / "builder" / "bin" / "python", "-m", "build", "--outdir", place / "dist", ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return place / "dist"


def test_both_hold_all_files_of_the_package_and_no_others(dist: Path) -> None:
    assert SCRIPT["missing"](dist) == []


def test_the_installed_wheel_runs_the_demo(dist: Path, tmp_path: Path) -> None:
    """Its environment has the wheel, and what it needs from this one. `make wheel` installs that too."""
    venv.create(tmp_path / "environment", with_pip=True)
    (wheel,) = dist.glob("*.whl")
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    (own,) = (tmp_path / "environment").glob("lib/*/site-packages")
    (own / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # read after what lies in `own`
    (tmp_path / "empty").mkdir()
    result = SCRIPT["demo"](tmp_path / "environment" / "bin" / "smalti", "1m", tmp_path / "empty")
    assert {"tokenizer", "mim"} <= set(result)
    where: list[str | Path] = [python, "-c", "import smalti; print(smalti.__file__)"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    assert str(own) in subprocess.run(where, env=clean, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
