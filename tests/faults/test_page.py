"""The page of faults names tests that there are."""

import ast
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


def test_every_case_of_files_images_folders_settings_and_security_is_said_where_it_is_tried() -> None:
    """In the name of a test or in what it says of itself; and each of these tests is of one of the cases of its row."""
    said = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                said[node.name] = f"{node.name} {ast.get_docstring(node) or ''}".lower()
    page = (TESTS.parent / "docs" / "results" / "faults.md").read_text()
    rows = re.findall(r"^\| ((?:[CFGHJK]\d\d(?:, )?)+) \|(.*)$", page, re.M)
    assert len(rows) > 70
    for cases, rest in rows:
        tests = [said[name] for name in re.findall(r"`(test_\w+)`", rest)]
        assert [case for case in cases.split(", ") if not any(case.lower() in text for text in tests)] == []
        assert [text for text in tests if not any(case.lower() in text for case in cases.split(", "))] == []
