"""Scripts for whoever releases: what they make of what they are given."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "torch", "version": "2.14", "vulns": []}
WEAK = {"name": "pillow", "version": "12.3", "vulns": [{"id": "CVE-1", "fix_versions": ["13.0"]}]}
SKIPPED = {"name": "tyro", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([GOOD, GOOD], 0, ["no weakness is known of 2 packages"]),
        ([GOOD, WEAK], 1, ["pillow 12.3: CVE-1, mended in 13.0"]),
        (
            [GOOD, SKIPPED],
            2,
            ["not audited: 1 of 2 could be looked up, of the others first tyro; is there a network?"],
        ),
        (
            [SKIPPED],
            2,
            ["not audited: no package could be looked up, of the others first tyro; is there a network?"],
        ),
    ],
)
def test_an_audit_says_what_it_could_not_look_up(packages: list[dict[str, Any]], code: int, said: list[str]) -> None:
    assert script("audit").judged({"dependencies": packages}) == (code, said)


def test_an_audit_that_cannot_begin_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub = tmp_path / "pip-audit"
    stub.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 1\n")
    stub.chmod(0o755)
    assert script("audit").main(str(stub)) == 2
    assert capsys.readouterr().out == (
        "not audited: pip-audit cannot look anything up here (no route to host); run it where there is a network\n"
    )


def test_the_bill_of_materials_has_every_package_of_the_lock_with_its_digests() -> None:
    lock = (SCRIPTS.parent / "requirements.lock").read_text()
    made = script("sbom").bill(lock)
    assert (made["bomFormat"], made["metadata"]["component"]["name"]) == ("CycloneDX", "smalti")
    names = {component["name"] for component in made["components"]}
    assert {"torch", "numpy", "pillow", "safetensors"} <= names
    assert len(made["components"]) == sum("==" in line and line[0].isalnum() for line in lock.splitlines())
    digests = [part["externalReferences"][0]["hashes"] for part in made["components"]]
    assert sum(map(len, digests)) == lock.count("--hash=sha256:")
    assert all(digests)
