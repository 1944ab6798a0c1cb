"""The wheel and the sdist as others get them: `make wheel`, which builds both and calls check_wheel.py DIST.

It compares what is in them with the sources, installs the wheel with all that it needs into an environment that has
nothing, and runs `smalti demo` there, in an empty folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def missing(dist: Path) -> list[str]:
    """Files of the package that are not in the wheel or not in the sdist, and files that are there and should not."""
    sources = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src" / "smalti").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    in_sdist = {name.removeprefix("src/") for name in names if name.startswith("src/smalti/")}
    found = [f"{name}: not in {wheel.name}" for name in sorted(sources - in_wheel)]
    found += [f"{name}: not in {sdist.name}" for name in sorted(sources - in_sdist)]
    return found + [f"{name}: only in {wheel.name}" for name in sorted(in_wheel - sources)]


def environment(folder: Path, wheel: Path, pip: list[str]) -> Path:
    """A new environment with the wheel and what it needs; returns its `smalti`."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", *pip, wheel], check=True)
    return folder / "bin" / "smalti"


def demo(smalti: Path, budget: str, folder: Path) -> dict[str, object]:
    """Run the demo in an empty folder, without anything of this checkout; returns its result."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SMALTI"))}
    for words in (["--version", "--verbose"], ["pretrain", "--help"]):
        subprocess.run([smalti, *words], cwd=folder, env=clean, check=True)
    command = [str(smalti), "demo", "--budget", budget, "--json"]
    done = subprocess.run(command, cwd=folder, env=clean, check=True, stdout=subprocess.PIPE, text=True)
    assert (folder / "runs" / "demo" / "report.html").is_file()
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("dist", type=Path, help="the folder of the wheel and the sdist")
    arguments.add_argument("--budget", default="1m", help="of the demo")
    arguments.add_argument("--pip", default="", help="further options of pip, in one text")
    given = arguments.parse_args()
    if found := missing(given.dist):
        print(*found, sep="\n", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as place:
        (wheel,) = given.dist.glob("*.whl")
        began = time.perf_counter()
        smalti = environment(Path(place) / "environment", wheel.resolve(), given.pip.split())
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, installed in {time.perf_counter() - began:.0f} s")
        (Path(place) / "empty").mkdir()
        began = time.perf_counter()
        result = demo(smalti, given.budget, Path(place) / "empty")
        print(f"the demo took {time.perf_counter() - began:.0f} s; results: {', '.join(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
