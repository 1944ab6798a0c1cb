"""Paths that no system has."""

import pytest

from smalti.cli import main


@pytest.mark.parametrize("path", ["~nobody_of_this_name/run", "a\0b"])
def test_paths_that_cannot_be_used_are_said_in_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["info", path], ["export", "run", "--out", path]):
        assert main(arguments) in (2, 4)
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert "bug" not in line
