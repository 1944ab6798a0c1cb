"""Scripts for whoever releases or adds a reference: what they make of what they are given."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.cli import main
from smalti.core.config import from_json, to_json
from smalti.core.errors import UsageError
from smalti.evaluation.reference_curves import Reference, references
from tests.small_runs import PRETRAIN_FLAGS, pictures, pretrain, train_tokenizer

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


CURVES = script("reference_curve")
HALF_HOUR = SCRIPTS.parent / "docs" / "results" / "pretrain-cifar10"


def test_a_reference_of_the_package_is_what_the_script_makes_of_its_run() -> None:
    (shipped,) = (found for found in references() if found.name == "cifar10-dvae-1024-half-hour")
    assert CURVES.reference_of(HALF_HOUR, shipped.name, shipped.data) == shipped


def test_the_files_of_the_package_are_as_the_script_writes_them() -> None:
    files = sorted(CURVES.HOME.iterdir(), key=lambda file: file.stem)
    assert [file.stem for file in files] == [found.name for found in references()]
    for file in files:
        text = file.read_text()
        assert text == CURVES.written(from_json(Reference, json.loads(text)))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=300))
def test_a_thinned_curve_keeps_its_ends_and_its_bounds(loss: list[float]) -> None:
    images, heights = CURVES.thinned([64 * step for step in range(1, len(loss) + 1)], loss)
    assert len(images) == len(heights) <= CURVES.MAX_POINTS
    assert list(images) == sorted(set(images))
    assert (images[0], images[-1]) == (64, 64 * len(loss))
    assert (heights[0], heights[-1]) == (round(loss[0], 4), round(loss[-1], 4))
    assert min(loss) - 1e-4 <= min(heights) <= max(heights) <= max(loss) + 1e-4


def test_a_thinned_curve_that_follows_the_logarithm_stays_on_it() -> None:
    images = range(64, 64 * 3000, 64)
    places, heights = CURVES.thinned(images, [7 - math.log(count) for count in images])
    assert heights == pytest.approx([7 - math.log(count) for count in places], abs=1e-3)


def test_a_reference_is_made_of_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, tokenizer, of = pictures(tmp_path / "photos"), tmp_path / "tokenizer", CURVES.reference_of
    assert train_tokenizer(photos, tokenizer, 2) == 0
    assert pretrain(photos, tokenizer, tmp_path / "tokens", 3) == 0
    made = of(tmp_path / "tokens", "small", "pictures")
    assert to_json(made.setup) == {
        "kind": "Setup",
        "target": "tokens",
        "vocab_size": 16,
        "num_patches": 16,
        "num_masked_patches": 6,
        "embed_dim": 16,
        "depth": 2,
        "num_images": 48,
        "masks": "blocks",
        "decoder": "linear",
        "channels": 3,
        "optimiser": "adamw",
    }
    assert made.images == (16, 32, 48)
    flags = [*PRETRAIN_FLAGS, "--data", str(photos), "--plan.steps", "3", "--target", "pixels"]
    assert main(["pretrain", "tiny", *flags, "--out", str(tmp_path / "pixels")]) == 0
    assert of(tmp_path / "pixels", "small", "pictures").setup.target == "pixels"
    assert main(["pretrain", "tiny", *flags, "--target.error", "l1", "--out", str(tmp_path / "l1")]) == 0
    with pytest.raises(UsageError, match=r"^the target is Pixels\(.*\); use tokens or normalised pixels$"):
        of(tmp_path / "l1", "small", "pictures")
    with pytest.raises(UsageError, match=r"photos has no result.json; let the run end first$"):
        of(photos, "small", "pictures")
    flags = ["reference_curve", str(tmp_path / "tokens"), "--name", "small", "--data", "pictures"]
    monkeypatch.setattr("sys.argv", [*flags, "--out", str(tmp_path)])
    CURVES.main()
    assert capsys.readouterr().out.endswith(f"written: {tmp_path / 'small.json'}\n")
    assert from_json(Reference, json.loads((tmp_path / "small.json").read_text())) == made


@pytest.mark.docs
def test_the_way_of_an_image_is_drawn_as_it_is() -> None:
    drawn = subprocess.run([sys.executable, str(SCRIPTS / "flow.py")], capture_output=True, text=True, check=True)
    page = (SCRIPTS.parent / "ARCHITECTURE.md").read_text()
    assert (
        page.partition("<!-- flow:begin -->\n```\n")[2].partition("\n```\n<!-- flow:end -->")[0] == drawn.stdout.strip()
    )
