"""The page of faults names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_on_the_page_exists() -> None:
    page = (TESTS.parent / "docs" / "results" / "faults.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    defined = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20
    assert named <= defined
