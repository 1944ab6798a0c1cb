"""docs/results/field.md names a test for every situation, and each of them exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results" / "field.md").read_text()
pytestmark = pytest.mark.docs


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row)
        assert named, row
        path = ""
        for given, name in named:
            path = given or path
            assert name in names_in(ROOT / path), f"{path}::{name}"
