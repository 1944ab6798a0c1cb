"""Help: every flag of every verb says what it is for and shows the value that a recipe has; torch is not needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from smalti import cli
from smalti.core.config import leaves
from smalti.find_recipe import load_recipe, recipe_names
from smalti.flags import parse
from smalti.help import Flag, Page, take_help
from smalti.help_pages import read_pages, write_pages
from smalti.recipes import nano
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from tests.cli.test_cli import error_of


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    return cli.all_pages()


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_every_verb_has_a_page_and_so_has_every_recipe_with_each_of_its_verbs(pages: dict[str, Page]) -> None:
    training = {"train-tokenizer": TrainTokenizer, "pretrain": Pretrain, "finetune": Finetune}
    expected = set(cli.VERBS)
    for name in recipe_names():
        expected |= {f"{verb.replace('_', '-')} {name}" for verb in load_recipe(name)}
    assert set(pages) == expected
    assert all(f"{verb} nano" in pages for verb in training)


def test_every_flag_of_every_verb_says_what_it_is_for(pages: dict[str, Page]) -> None:
    for command, page in pages.items():
        text = page.text("all")
        assert page.about, command
        for flag in page.flags:
            assert flag.text.strip(" []"), f"{command} --{flag.name}"
            assert flag.is_argument or f"  {flag.lines()[0].split()[0]}" in text
            assert flag.values or flag.is_argument or flag.default in ("on", "off") or flag.name in (
                "json", "debug", "allow-inexact"
            ), f"{command} --{flag.name}"  # fmt: skip
        assert all(page.parts[flag.part] for flag in page.flags if flag.part), command
        assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("start", [nano.train_tokenizer(), nano.pretrain(), nano.finetune()])
def test_what_help_shows_as_defaults_is_the_recipe(
    start: TrainTokenizer | Pretrain | Finetune, pages: dict[str, Page]
) -> None:
    """Typed as flags, the values shown give the same configuration; and no field is missing."""
    verb = {TrainTokenizer: "train-tokenizer", Pretrain: "pretrain", Finetune: "finetune"}[type(start)]
    flags = {flag.name: flag for flag in pages[f"{verb} nano"].flags}
    names = {leaf.name.replace("_", "-") for leaf in leaves(start)} - {"data.path"} | {"data"}
    assert set(flags) == names | {"resume", "allow-inexact", "json", "debug"}
    typed: list[str] = []
    for name in names:
        flag = flags[name]
        if not flag.values:
            before, _, last = name.rpartition(".")
            typed.append("--" + ".".join(filter(None, [before, last if flag.default == "on" else f"no-{last}"])))
        elif flag.default:
            typed += [f"--{name}", *flag.default.split()]
    assert parse(type(start), start, typed, verb) == start


def test_a_reference_and_a_value_of_the_recipe_are_shown(pages: dict[str, Page]) -> None:
    text = " ".join(pages["pretrain nano"].text("all").split())
    assert f"at the batch size of the recipe [BEiT §2.5] (default: {nano.pretrain().optimiser.lr:g})" in text
    assert "--backbone.img-size INT INT pixels: height, width [BEiT §2.5] (default: 28 28)" in text


def test_the_flags_that_people_need_come_first_and_the_rest_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    short = printed(["pretrain", "nano", "--help"], capsys)
    shown = [line.split()[0] for line in short.splitlines() if line.startswith("  --")]
    assert shown == ["--data", "--tokenizer", "--out", "--resume", "--plan.steps", "--plan.batch-size",
                     "--optimiser.lr", "--masking", "--decoder", "--device"]  # fmt: skip
    assert "optimiser (13)" in short
    assert "smalti pretrain nano --help all" in short
    part = printed(["pretrain", "nano", "--help", "optimiser"], capsys)
    assert {line.split()[0].split(".")[0] for line in part.splitlines() if line.startswith("  --")} == {"--optimiser"}
    assert "masking:" in printed(["pretrain", "nano", "--help", "all"], capsys)


def test_help_is_of_the_kinds_that_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["pretrain", "nano", "--masking", "blockwise", "--decoder", "linear", "--help=masking"]
    assert "--masking.min-aspect" in printed(chosen, capsys)
    assert "--masking.min-aspect" not in printed(["pretrain", "nano", "--help", "masking"], capsys)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["pretrain", "--help", "maskin"], "has no part 'maskin' to give help on; did you mean 'masking'?"),
        (["info", "--help", "masking"], "smalti info MODEL has no part 'masking' to give help on; there are: all"),
        (["pretrian", "--help"], "unknown verb 'pretrian'; did you mean 'pretrain'?"),
        (["pretrain", "nanoo", "--help"], "unknown recipe 'nanoo'; did you mean 'nano'?"),
        (["evaluate", "a", "b", "--ranks.time-out", "3"], "'--ranks.time-out'; did you mean '--ranks.timeout'?"),
    ],
)
def test_a_typo_names_what_is_nearest(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in error_of(arguments, 2, capsys)


def test_help_takes_the_word_after_it_alone() -> None:
    arguments = ["nano", "--help", "masking", "--seed", "1"]
    assert (take_help(arguments), arguments) == ("masking", ["nano", "--seed", "1"])
    assert take_help(["-h", "--json"]) == ""
    assert take_help(["nano"]) is None


def test_the_pages_of_the_package_are_what_the_sources_say(pages: dict[str, Page]) -> None:
    assert read_pages() == pages, "a configuration changed: make help-pages"


def test_pages_are_read_as_they_were_written(tmp_path: Path) -> None:
    flags = (Flag("THIS", "", "what"), Flag("out", "TEXT", "where: “ü”\n", "here"))
    several = {"see": Page("see THIS", "What it is", flags, {"data": "Images"}), "see nano": Page("see", "It", (), {})}
    write_pages(several, tmp_path / "pages")
    assert list(read_pages(tmp_path / "pages").items()) == list(several.items())


def test_help_of_every_verb_and_recipe_imports_neither_torch_nor_numpy(pages: dict[str, Page]) -> None:
    commands = [command for command in pages if " " not in command or command.endswith(" nano")]
    code = (
        "import sys; from smalti.cli import main\n"
        f"codes = [main([*command.split(), '--help']) for command in {commands}]\n"
        "print(set(codes), {'torch', 'numpy', 'tyro', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("{0} set()\n"), done.stderr
