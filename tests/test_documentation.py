"""What README and docs tell people to type is what the program takes."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.distributed.run import get_args_parser

import smalti
from smalti import cli
from smalti.recipes import tiny

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
FENCE = r"^(?P<indent> *(?:[-*+] +|\d+\. +)?)(?P<fence>```+|~~~+) *(?P<language>\w+)[^\n]*\n"
BLOCK = re.compile(FENCE + r"(?P<code>.*?)^ *(?P=fence)", re.MULTILINE | re.DOTALL)
SHELL = {"bash", "sh", "shell", "console", "zsh"}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


class Block(NamedTuple):
    page: str
    language: str
    code: str


def blocks_of(text: str, page: str = "page") -> Iterator[Block]:
    """The fenced blocks of a Markdown page that name a language."""
    for match in BLOCK.finditer(text):
        lines = [line.removeprefix(" " * len(match["indent"])) for line in match["code"].splitlines()]
        yield Block(page, match["language"].lower(), "\n".join(lines) + "\n")


def commands_of(block: Block) -> Iterator[list[str]]:
    """Every command of a shell block as words; continued lines are joined, pipes and && separate commands."""
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";|&"):
                yield from [words] if words else []
                words = []
            elif words or not ASSIGNMENT.fullmatch(word):
                words.append(word)


ALL = [block for page in PAGES for block in blocks_of(page.read_text(), page.relative_to(ROOT).as_posix())]
COMMANDS = [(block.page, words) for block in ALL if block.language in SHELL for words in commands_of(block)]
SMALTI = [(page, words[1:]) for page, words in COMMANDS if words[0] == "smalti" or words[0].endswith("/smalti")]
SMALTI += [(page, words[3:]) for page, words in COMMANDS if words[1:3] == ["-m", "smalti"]]
TORCHRUN = [(page, words[words.index("torchrun") + 1 :]) for page, words in COMMANDS if "torchrun" in words]
SMALTI += [(page, words[words.index("smalti") + 1 :]) for page, words in TORCHRUN if "$WHAT" not in words]
MAKE = [(page, words[1:]) for page, words in COMMANDS if words[0] == "make"]
SCRIPTS = [(page, words[1]) for page, words in COMMANDS if "python" in words[0] and words[1:2] and words[1][0] != "-"]
PYTHON = [block for block in ALL if block.language in {"python", "py"}]


@pytest.fixture
def only_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs stop where the work would begin; run folders and recipe files that a page names need not exist."""
    monkeypatch.chdir(tmp_path)
    # All of them are imported before a function is replaced: else one would keep the replacement for good.
    modules = {module: importlib.import_module(f"smalti.runs.{module}") for module, _, _ in cli.VERBS.values()}
    for name in modules.keys() - {"explain", "masks"}:  # these work without anything
        monkeypatch.setattr(modules[name], "main", lambda config, **_: {})
    monkeypatch.setattr("smalti.runs.folder.read_config", lambda run, cls: cls())
    monkeypatch.setattr("smalti.runs.folder.copy_run", lambda run, out: None)
    every = {"train_tokenizer": tiny.train_tokenizer, "pretrain": tiny.pretrain, "finetune": tiny.finetune}
    monkeypatch.setattr("smalti.find_recipe._load_file", lambda path, function: every)


def has_targets(words: list[str], makefile: str) -> bool:
    """Whether every word that is no variable or flag is a target."""
    targets = set(re.findall(r"^([\w.-]+):", makefile, re.M))
    return {word for word in words if "=" not in word and not word.startswith("-")} <= targets


def imports_of(code: str) -> Iterator[tuple[str, str | None]]:
    """(module, member) of everything of smalti that is imported."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "smalti")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "smalti":
            yield from ((str(node.module), alias.name) for alias in node.names)


def resolves(module: str, member: str | None) -> bool:
    """Whether an import would work."""
    try:
        found: Any = importlib.import_module(module)
        return member is None or hasattr(found, member) or bool(importlib.import_module(f"{module}.{member}"))
    except ImportError:
        return False


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize(
    ("page", "words"), SMALTI, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_command_of_the_documentation_is_one_that_smalti_takes(
    page: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(words)
    assert code == 0, f"{page}: smalti {' '.join(words)}: {capsys.readouterr().err}"


def test_blocks_that_the_documentation_names_are_in_the_runs_that_it_makes() -> None:
    """Runs of these pages come from `tiny`."""
    depth = tiny.pretrain().backbone.depth
    for page, words in SMALTI:
        if words[0] in ("show", "export", "embed") and words[1].startswith("runs/"):
            named = re.findall(r"--(?:attention|layer) ([\d ]+)", " ".join(words))
            assert all(int(block) <= depth for blocks in named for block in blocks.split()), page


@pytest.mark.parametrize(("page", "words"), TORCHRUN)
def test_torchrun_takes_the_flags_of_the_documentation(page: str, words: list[str]) -> None:
    given = get_args_parser().parse_args(words)
    assert (given.module, given.training_script) == (True, "smalti"), page


def test_the_model_of_throughput_gives_the_figures_beside_it() -> None:
    [block] = [block for block in PYTHON if block.page == "docs/scaling.md"]
    defined: dict[str, Any] = {}
    exec(block.code, defined)
    text = (ROOT / block.page).read_text()
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| ([\d-]+) \| ([\d.]+) \| (\d+) \| (\d+) % \| ([\d.]+) days \|$", text, re.M
    )
    assert len(rows) == 6
    for ranks, teraflops, link, *told in rows:
        rate, link = float(teraflops) / 0.159, 1.0 if link == "-" else float(link)
        seconds = defined["seconds_a_step"](2048, int(ranks), rate, 92e6, link)
        share = 2048 / rate / int(ranks) / seconds
        assert told == [
            f"{seconds:.2f}",
            f"{2048 / seconds:.0f}",
            f"{share:.0%}"[:-1],
            f"{500_000 * seconds / 86400:.1f}",
        ]


@pytest.mark.parametrize(("page", "words"), MAKE)
def test_a_make_target_of_the_documentation_exists(page: str, words: list[str]) -> None:
    assert has_targets(words, (ROOT / "Makefile").read_text()), f"{page}: make {' '.join(words)}"


@pytest.mark.parametrize(("page", "script"), SCRIPTS)
def test_a_script_of_the_documentation_exists(page: str, script: str) -> None:
    assert (ROOT / script).is_file(), f"{page}: {script}"


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.page)
def test_python_of_the_documentation_compiles_and_its_imports_exist(block: Block) -> None:
    compile(block.code, block.page, "exec")
    missing = [found for found in imports_of(block.code) if not resolves(*found)]
    assert missing == []


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.page)
def test_python_of_the_documentation_uses_the_public_api(block: Block) -> None:
    used = re.findall(r"\bsmalti\.(\w+)", re.sub(r"^(?:from|import) .*", "", block.code, flags=re.M))
    assert set(used) <= set(smalti.__all__)
    assert {module for module, _ in imports_of(block.code)} <= {"smalti", "smalti.recipes"}


PAGE = """
```bash
# a comment
$ TORCH=cpu make demo BUDGET=2m   # another one
smalti train-tokenizer tiny \\
    --data ~/Pictures --out run && .venv/bin/smalti pretrian tiny --out run
```
- ```python
  from smalti.recipes import tiny, gone
  import smalti.nowhere
  ```
```
no language
```
"""


def test_blocks_and_commands_are_found() -> None:
    shell, python = blocks_of(PAGE)
    assert (shell.language, python.language) == ("bash", "python")
    assert list(commands_of(shell)) == [
        ["make", "demo", "BUDGET=2m"],
        ["smalti", "train-tokenizer", "tiny", "--data", "~/Pictures", "--out", "run"],
        [".venv/bin/smalti", "pretrian", "tiny", "--out", "run"],
    ]
    found = list(imports_of(python.code))
    assert found == [("smalti.recipes", "tiny"), ("smalti.recipes", "gone"), ("smalti.nowhere", None)]
    assert [resolves(*one) for one in found] == [True, False, False]


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("demo --budget 2m --data ~/Pictures", 0),
        ("pretrain tiny --data d --tokenizer t --out o --optimiser.lr 1e-3", 0),
        ("pretrain my_file.py:mine --out o", 0),
        ("pretrain --resume o", 0),
        ("evaluate run embedded --json", 0),
        ("explain nano", 0),
        ("pretrian tiny --out o", 2),
        ("pretrain tini --out o", 2),
        ("pretrain tiny --out o --optimizer.lr 1e-3", 2),
        ("evaluate run", 2),
    ],
)
def test_wrong_commands_are_told_from_right_ones(command: str, code: int) -> None:
    assert cli.main(shlex.split(command)) == code


def test_targets_are_read_from_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert has_targets(["demo", "BUDGET=2m"], makefile)
    assert has_targets(["-j2", "test"], makefile)
    assert not has_targets(["dmeo"], makefile)
