"""Packages that are too old are named when a command starts."""

from importlib import metadata

import pytest

from smalti.cli import main
from smalti.core.versions import installed as all_installed
from smalti.core.versions import outdated


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the system says is there."""
    there = {"torch": "2.14.1+cpu", "pillow": "13.0.0", "numpy": "2.0"}

    def version(package: str) -> str:
        if package not in there:
            raise metadata.PackageNotFoundError(package)
        return there[package]

    needed = ["torch>=2.10", "pillow>=13", "numpy>=2.0", "missing>=1", "timm>=1.0.20; extra == 'interop'", "odd"]
    monkeypatch.setattr(metadata, "requires", lambda package: needed)
    monkeypatch.setattr(metadata, "version", version)
    return there


def test_what_is_new_enough_needs_no_word(installed: dict[str, str]) -> None:
    assert outdated() == []
    installed |= {"torch": "2.10.0", "pillow": "13", "numpy": "10.0"}
    assert outdated() == []


@pytest.mark.parametrize("version", ["2.9.1", "2.9", "1.13.1+cu117", "2"])
def test_what_is_older_is_named_with_what_is_needed(
    version: str, installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["torch"] = version
    assert outdated() == [f"torch {version} is installed, and 2.10 or later is needed"]
    main(["explain"])
    assert capsys.readouterr().err.splitlines()[0] == (
        f"warning: torch {version} is installed, and 2.10 or later is needed; pip install --upgrade smalti"
    )


def test_the_bounds_are_those_of_the_project() -> None:
    """Of torch and Pillow they are where known weaknesses end."""
    needed = metadata.requires("smalti") or []
    assert {"torch>=2.10", "pillow>=13"} <= set(needed)
    assert outdated() == []


def test_from_its_sources_alone_nothing_is_known() -> None:
    assert outdated("a package that nobody has") == []


def test_a_bug_report_has_all_versions_that_are_there(installed: dict[str, str]) -> None:
    installed["timm"] = "1.0.20"
    about = all_installed()
    assert {name: about[name] for name in ("torch", "numpy", "timm")} == {
        "torch": "2.14.1+cpu",
        "numpy": "2.0",
        "timm": "1.0.20",
    }
    assert "missing" not in about
    assert about["python"].startswith("3.")
    assert about["platform"]
