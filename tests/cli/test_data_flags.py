"""The flags of DATA are the same in every verb, and no message names one that its verb does not have."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from smalti import cli
from smalti.flags import parse, without_foreign_flags
from tests.small_runs import pictures

SRC = Path(__file__).parents[2] / "src" / "smalti"
FLAG = re.compile(r"--(?:data|plan)(?:\.[a-z][a-z-]*)?(?![\w.])")
READERS = ("check", "plan", "prepare", "train-tokenizer", "pretrain", "finetune", "evaluate", "embed", "search", "show")


def config_of(verb: str) -> Any:
    module, config, _ = cli.VERBS[verb]
    return getattr(importlib.import_module(f"smalti.runs.{module}"), config)


def messages() -> list[str]:
    """What is said by the modules that read images and by the command line; parts that are computed are X."""
    found = []
    for path in [*sorted((SRC / "data").rglob("*.py")), SRC / "cli.py"]:
        tree = ast.parse(path.read_text())
        documented = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documented:
                found.append(node.value)
    return [f"it is wrong; cause; {text}" for text in found if FLAG.search(text) and " " in text and "\n" not in text]


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def test_there_are_messages_that_name_flags() -> None:
    assert len(messages()) > 8
    assert any("--data.follow-links all" in text for text in messages())


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("message", messages())
def test_no_message_names_a_flag_that_the_verb_has_not(verb: str, message: str) -> None:
    cls = config_of(verb)
    said = without_foreign_flags(message, cls)
    own = {field.name.replace("_", "-") for field in dataclasses.fields(cls)}
    for flag in FLAG.findall(said):
        part, _, name = flag.removeprefix("--").partition(".")
        nested = getattr(cls, part, None)
        if dataclasses.is_dataclass(nested):
            assert not name or name.replace("-", "_") in {field.name for field in dataclasses.fields(nested)}, said
        else:
            assert part == "data", said
            assert name in own if name else own & {"data", "images"}, said
    assert said.startswith("it is wrong; cause")
    if verb == "finetune":
        assert said == message


def test_the_flag_that_a_message_of_links_names_is_one_of_every_verb(tmp_path: Path) -> None:
    for verb in READERS:
        assert "--data.follow-links all" in without_foreign_flags(
            "X; follow with --data.follow-links all", config_of(verb)
        )
    for verb, words in {
        "check": ["X"],
        "plan": ["X"],
        "prepare": ["X", "--out", "Y"],
        "evaluate": ["M", "X"],
        "embed": ["M", "X", "--out", "f.npy"],
        "search": ["F", "X"],
        "show": ["M", "X"],
    }.items():
        config = parse(config_of(verb), None, [*words, "--data.follow-links", "all"], verb)
        assert config.follow_links == "all"


def test_data_may_be_given_by_its_flag_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--data", str(pictures(tmp_path / "photos", 2))]) == 0
    assert "2 classes, 4 images" in capsys.readouterr().out
    assert parse(config_of("evaluate"), None, ["M", "--data=X"], "evaluate").images == "X"
    assert parse(config_of("search"), None, ["F", "a.jpg", "--data", "X"], "search").data == "X"


def test_links_are_followed_by_check_with_the_flag_that_its_message_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, links = pictures(tmp_path / "photos", 2), tmp_path / "links"
    links.mkdir()
    for path in photos.rglob("*.png"):
        (links / f"{path.parent.name}-{path.name}").symlink_to(path)
    assert cli.main(["check", str(links)]) == 3
    assert "4 links lead out of the folder: follow them with --data.follow-links all" in capsys.readouterr().err
    assert cli.main(["check", str(links), "--data.follow-links", "all"]) == 0
