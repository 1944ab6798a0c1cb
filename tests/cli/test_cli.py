"""The command line: verbs, flags, recipes, exit codes, and one clear line for every error."""

import errno
import importlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch._dynamo.exc import BackendCompilerFailed

from smalti import __version__
from smalti.cli import VERBS, main
from smalti.find_recipe import recipe_names
from smalti.flags import parse
from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention
from smalti.runs.pretrain_config import Pretrain
from smalti.tokenizers.quantised import VQ
from smalti.training.targets import Pixels

IMAGE, WIDTH = ["--backbone.img-size", "64", "48"], ["--backbone.embed-dim", "64"]

RECIPE_FILE = """
from dataclasses import replace
from smalti.recipes import nano

def mine():
    return replace(nano.train_tokenizer(), seed=41)

def story():
    return nano.demo()
"""

RECIPES = "base, dalle, features, fsq, kmeans, nano, paper, random_projection, release, small, tiny, vq, vqkd"
FOR_PRETRAIN = "base, nano, paper, release, small, tiny"
FOR_TOKENIZER = "base, dalle, features, fsq, kmeans, nano, paper, random_projection, small, tiny, vq, vqkd"


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd)


def error_of(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with `code` and one line."""
    assert main(arguments) == code
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert printed.out == ""
    return lines[0]


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run a command with --json and read its last line."""
    assert main([*arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return value


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that the verbs would have run."""
    seen: list[Any] = []
    for verb in ("demo", "train_tokenizer", "pretrain", "finetune", "evaluate", "show", "report"):
        module = importlib.import_module(f"smalti.runs.{verb}")
        monkeypatch.setattr(module, "main", lambda config, **_: seen.append(config) or {"ran": True})
    return seen


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_every_verb_and_recipe(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in VERBS)
    assert ", ".join(recipe_names()) in printed
    assert {"nano", "tiny"} <= set(recipe_names())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_the_version_with_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.core.compute._gflops", lambda kind, _: 100.0)
    about = json_of(["--version", "--verbose"], capsys)
    assert {"smalti", "torch", "numpy", "python", "platform", "compute", "threads", "GPUs"} <= set(about)
    assert "cpu in fp32" in about["compute"]
    assert main(["--version", "--verbose"]) == 0
    assert f"\ntorch: {about['torch']}\n" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_a_system_without_fcntl_is_refused_in_one_line(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Windows is: the locks of run folders need it."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert error_of([verb], 2, capsys) == (
        "error: smalti runs on Linux and macOS; this system has no fcntl, which locks run folders; on Windows use WSL"
    )


def test_the_module_runs_as_the_command() -> None:
    done = python("-m", "smalti", "--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


def test_a_failing_command_hands_its_exit_code_to_the_shell() -> None:
    done = python("-m", "smalti", "pretrian")
    assert done.returncode == 2
    assert done.stderr == "error: unknown verb 'pretrian'; did you mean 'pretrain'?\n"


def test_help_does_not_import_torch() -> None:
    code = "import sys; from smalti.cli import main; main(['--help']); print({'torch', 'tyro'} & set(sys.modules))"
    assert python("-c", code).stdout.endswith("set()\n")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_has_help(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, flag]) == 0
    assert capsys.readouterr().out.startswith(f"usage: smalti {verb}")


def test_help_after_a_recipe_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "nano", "--help", "all"]) == 0
    assert "(default: 28 28)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["frobnicate"], "unknown verb 'frobnicate'; see smalti --help"),
        (["train-tokeniser"], "unknown verb 'train-tokeniser'; did you mean 'train-tokenizer'?"),
        (
            ["train-tokenizer"],
            f"no recipe given; smalti train-tokenizer RECIPE ...; there are: {FOR_TOKENIZER}",
        ),
        (
            ["pretrain", "--out", "x"],
            f"no recipe given; smalti pretrain RECIPE ...; there are: {FOR_PRETRAIN}",
        ),
        (
            ["explain"],
            f"no recipe given; smalti explain RECIPE; there are: {RECIPES}",
        ),
        (
            ["pretrain", "tniy"],
            f"unknown recipe 'tniy'; did you mean 'tiny'?; there are: {RECIPES}",
        ),
        (["pretrain", "vq", "--out", "x"], f"recipe vq has nothing for pretrain; there are: {FOR_PRETRAIN}"),
        (["explain", "zzz"], f"unknown recipe 'zzz'; there are: {RECIPES}"),
        (["train-tokenizer", "tiny", "--data", "x"], "no run folder given; use --out FOLDER"),
        (["report"], "no runs given; smalti report RUN..."),
        (["evaluate"], "Missing from smalti evaluate: A run folder"),
        (["evaluate", "run"], "Missing from smalti evaluate: A folder (for probes of a backbone with class folders)"),
        (["evaluate", "run", "images", "--sed", "1"], "unknown option '--sed'; did you mean '--seed'?"),
        (["pretrain", "--resume"], "no value for --resume; use --resume FOLDER"),
        (["tokenize", "embedded", "--recipe"], "no value for --recipe; use --recipe RECIPE"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_do(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """J01."""
    assert error_of(arguments, 2, capsys).startswith(f"error: {text}")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("--optimiser.lerning-rate", "--optimiser."),
        ("--optimiser.warmup_ration", "--optimiser.warmup-ratio"),
        ("--backbone.dept", "--backbone.depth"),
        ("--dta", "--data"),
        ("--seeed=3", "--seed"),
    ],
)
def test_a_misspelt_field_is_refused_with_a_suggestion(
    typo: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """J01."""
    line = error_of(["pretrain", "tiny", "--out", "x", typo, "1"], 2, capsys)
    assert f"unknown option '{typo.split('=')[0].replace('_', '-')}'" in line.replace("_", "-")
    assert f"did you mean '{meant}" in line


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--plan.steps", "many"),
        ("--optimiser.lr", "fast"),
        ("--device", "toaster"),
        ("--data.limit", "some"),
        ("--backbone.img-size", "28"),
        ("--seed", "1.5"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_flag(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """J02."""
    line = error_of(["pretrain", "tiny", "--out", "x", flag, value], 2, capsys)
    assert flag in line
    assert line.endswith("; see smalti pretrain tiny --help")


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["explain", "tiny", *IMAGE, "--backbone.patch-size", "7"], "patch_size 7 does not divide img_size 64x48"),
        (
            ["explain", "nano", "--data.side", "30", "--tokenizer.stride", "4"],
            "tokenizer.stride 4 does not divide data.side 30",
        ),
        (["explain", "nano", *WIDTH, "--backbone.num-heads", "3"], "num_heads 3 does not divide embed_dim 64"),
        (["explain", "nano", "--data.channels", "3"], "data.channels 3 and tokenizer.in_chans 1 differ"),
        (["demo", "--budget", "soon"], "a budget of 'soon'; use 90s or 10m"),
        (["demo", "--budget", "1s"], "a budget of 1 seconds; use at least 20s"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused_with_their_numbers(
    arguments: list[str], numbers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert numbers in error_of(arguments, 2, capsys)


def test_debug_shows_the_traceback_and_no_debug_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "zzz", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert printed.splitlines()[-1].startswith("error: unknown recipe 'zzz'")


class InductorError(BackendCompilerFailed):
    """As torch's, which is made from the frame that failed."""

    def __init__(self, text: str) -> None:
        RuntimeError.__init__(self, text)


NOT_COMPILED = InductorError(
    "CppCompileError: C++ compile error\n\nOutput:\na.cpp:1:10: fatal error: omp.h: No such file"
)


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero; this is a bug of ours"),
        (MemoryError(), 12, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 12, "out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            12,
            "out of memory",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 12, "out of memory"),
        (RuntimeError("can't start new thread"), 12, "no more threads can be started here; raise the limit of "),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "cannot write; No space left on device; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), 6, "cannot write /a; Read-only file system; make room"),
        (NOT_COMPILED, 2, "torch cannot compile the network on this machine; a.cpp:1:10: fatal error: omp.h: No such "),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_no_one_foresaw_has_its_exit_code_and_its_line(
    failure: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise failure

    monkeypatch.setattr("smalti.runs.report.main", fail)
    assert error_of(["report", "run"], code, capsys).startswith(f"error: {text}")


def test_a_verb_that_cannot_be_imported_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken torch: the import fails, and again where advice for the verb is looked for."""
    monkeypatch.setitem(sys.modules, "smalti.runs.report", None)
    assert error_of(["report", "run"], 1, capsys).startswith("error: ModuleNotFoundError: ")


def test_standard_output_goes_on_where_another_file_finds_the_disk_full(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("smalti.runs.report.main", fail)
    assert main(["report", "run"]) == 6
    print("still here", flush=True)
    assert capfd.readouterr().out == "still here\n"


def test_names_that_the_encoding_of_the_output_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """LANG=de_DE, and a class of a list in UTF-8; or a file whose name is no UTF-8."""
    written = io.TextIOWrapper(io.BytesIO(), "latin-1", newline="")
    monkeypatch.setattr("sys.stdout", written)
    monkeypatch.setattr("smalti.runs.report.main", lambda _: print("\u72ac \u00e9 \udcff"))
    assert main(["report", "run"]) == 0
    assert written.buffer.getvalue() == b"\\u72ac \xe9 \\udcff\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_results_that_find_the_disk_full_are_one_error_that_says_so() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "smalti", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        6,
        "error: cannot write; No space left on device; make room, or write elsewhere\n",
    )


def test_an_error_over_many_lines_is_printed_as_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise RuntimeError("one\n  two\nthree")

    monkeypatch.setattr("smalti.runs.report.main", fail)
    assert "RuntimeError: one two three; this is a bug" in error_of(["report", "run"], 1, capsys)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_json_is_the_last_line_wherever_the_flag_stands(
    place: int, capsys: pytest.CaptureFixture[str], captured: list[Any]
) -> None:
    arguments = ["evaluate", "run", "images"]
    assert main([*arguments[:place], "--json", *arguments[place:]]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ran": True}


def test_without_json_nothing_is_added_to_the_output(capsys: pytest.CaptureFixture[str], captured: list[Any]) -> None:
    assert main(["evaluate", "run", "images"]) == 0
    assert capsys.readouterr().out == ""


def test_flags_override_the_fields_of_a_recipe(captured: list[Any]) -> None:
    flags = ["--data", "photos", "--data.limit", "9", "--optimiser.betas", "0.8", "0.9", "--out", "run", "--seed", "7"]
    assert main(["train-tokenizer", "nano", *flags]) == 0
    config = captured[0]
    assert (config.data.path, config.data.limit, config.data.side) == ("photos", 9, 28)
    assert (config.optimiser.betas, config.out, config.seed) == ((0.8, 0.9), "run", 7)


@pytest.mark.parametrize(
    "flags", [["--target", "pixels", "--target.error", "l1"], ["--target.error=l1", "--target=pixels"]]
)
def test_a_part_is_chosen_by_its_kind_and_then_has_its_fields(flags: list[str], captured: list[Any]) -> None:
    assert main(["pretrain", "tiny", "--out", "run", *flags]) == 0
    assert captured[0].target == Pixels("l1")


def test_another_kind_keeps_what_the_recipe_says_of_both(captured: list[Any]) -> None:
    assert main(["train-tokenizer", "nano", "--out", "run", "--tokenizer", "vq", "--tokenizer.width", "32"]) == 0
    assert captured[0].tokenizer == VQ(vocab_size=512, stride=4, in_chans=1, width=32, depth=2)
    assert main(["demo", "--pretrain.masking", "random", "--pretrain.masking.ratio", "0.3"]) == 0
    assert captured[1].pretrain.masking == Random(0.3)


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(["pretrain", "tiny", "--out", "x", "--target", "pixel"], 2, capsys)
    assert line == "error: --target is 'pixel'; there are: tokens, soft-tokens, pixels"
    line = error_of(["pretrain", "tiny", "--out", "x", "--target"], 2, capsys)
    assert line == "error: no value for --target; use --target KIND"


def test_explain_shows_the_fields_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    about = json_of(["explain", "nano", "--target", "pixels"], capsys)
    fields = {row["name"]: row for row in about["pretrain"]["fields"]}
    assert (fields["target"]["value"], fields["target"]["origin"]) == ("pixels", "command line")
    assert (fields["target.error"]["value"], fields["target.error"]["origin"]) == ("mse", "command line")
    assert (fields["masking"]["value"], fields["masking"]["origin"]) == ("random", "recipe")


@pytest.mark.parametrize("flags", [["--data=photos"], ["--data", "photos"], ["--data.path", "photos"]])
def test_data_is_short_for_data_path(flags: list[str], captured: list[Any]) -> None:
    assert main(["pretrain", "tiny", "--out", "run", *flags]) == 0
    assert captured[0].data.path == "photos"


@pytest.mark.parametrize(
    ("flags", "side"),
    [
        ([], 28),
        (["--data", "embedded"], 28),
        (["--data=embedded"], 28),
        (["--data", "photos"], 64),
        (["--data=photos", "--out", "embedded"], 64),
    ],
)
def test_the_demo_starts_from_the_recipe_that_suits_its_images(
    flags: list[str], side: int, captured: list[Any]
) -> None:
    assert main(["demo", *flags]) == 0
    assert captured[0].tokenizer.data.side == captured[0].pretrain.data.side == side


def test_a_recipe_may_be_a_function_in_a_file(tmp_path: Path, captured: list[Any]) -> None:
    (tmp_path / "mine.py").write_text(RECIPE_FILE)
    assert main(["train-tokenizer", f"{tmp_path}/mine.py:mine", "--out", "run"]) == 0
    assert (captured[0].seed, captured[0].data.side) == (41, 28)


def test_a_recipe_in_a_file_can_be_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(RECIPE_FILE)
    about = json_of(["explain", f"{tmp_path}/mine.py:mine"], capsys)
    fields = {row["name"]: row for row in about["mine"]["fields"]}
    assert (fields["seed"]["value"], fields["seed"]["origin"]) == (41, "recipe")


@pytest.mark.parametrize(
    ("content", "arguments", "text"),
    [
        (None, ["explain", "mine.py:mine"], "no recipe file mine.py; give my_file.py:function"),
        (RECIPE_FILE, ["explain", "mine.py:mien"], "no function mien in mine.py; did you mean 'mine'?"),
        (RECIPE_FILE, ["explain", "mine.py:story"], "mine.py:story returns no training run"),
        (RECIPE_FILE, ["pretrain", "mine.py:mine"], "recipe mine.py:mine has nothing for pretrain"),
        ("def mine(:\n", ["explain", "mine.py:mine"], "cannot import mine.py; SyntaxError: "),
        ("import not_there\n", ["explain", "mine.py:mine"], "cannot import mine.py; ModuleNotFoundError: "),
    ],
)
def test_a_recipe_file_that_cannot_be_used_is_refused(
    content: str | None,
    arguments: list[str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.py").write_text(content)
    assert error_of(arguments, 2, capsys).startswith(f"error: {text}")


def test_explain_gives_every_field_with_unit_origin_and_reference(capsys: pytest.CaptureFixture[str]) -> None:
    about = json_of(["explain", "nano", "--optimiser.lr", "0.125"], capsys)
    assert about["recipe"] == "nano"
    for verb in ("train_tokenizer", "pretrain"):
        fields = {row["name"]: row for row in about[verb]["fields"]}
        assert all(set(row) == {"name", "value", "unit", "origin", "paper"} for row in fields.values())
        assert (fields["optimiser.lr"]["value"], fields["optimiser.lr"]["origin"]) == (0.125, "command line")
        assert fields["data.side"]["origin"] == "recipe"
        assert fields["data.held_out"]["origin"] == "default"
        assert fields["crop.flip"]["paper"]
        assert fields["plan.steps"]["unit"] == "optimiser steps"
        assert about[verb]["num_parameters"] > 100_000
        rates = about[verb]["schedules"]["learning rate"]
        assert 0.1 < max(rates.values()) <= 0.125
        assert str(fields["plan.steps"]["value"]) in rates


def test_explain_estimates_the_memory_of_a_pretraining_run(capsys: pytest.CaptureFixture[str]) -> None:
    plain = json_of(["explain", "nano"], capsys)
    half = json_of(["explain", "nano", "--plan.batch-size", "32", "--backbone.grad-checkpointing"], capsys)
    memory = plain["pretrain"]["memory_mb"]
    assert plain["train_tokenizer"]["memory_mb"] == {}
    assert memory["weights"] == memory["gradients"]
    with_adamw = json_of(["explain", "nano", "--optimiser.matrices", "adamw"], capsys)["pretrain"]["memory_mb"]
    assert with_adamw["optimiser"] == 2 * memory["weights"]
    assert memory["weights"] < memory["optimiser"] < 1.2 * memory["weights"], "Muon keeps one average of a matrix"
    assert memory["weights"] == pytest.approx(4e-6 * plain["pretrain"]["num_parameters"])
    assert half["pretrain"]["memory_mb"]["activations in fp32"] < memory["activations in fp32"] / 2
    assert memory["activations in bf16"] < 0.7 * memory["activations in fp32"]


def test_explain_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "nano"]) == 0
    printed = capsys.readouterr().out
    assert "nano: train-tokenizer, " in printed
    assert "nano: pretrain, " in printed
    assert "optimiser.weight_decay" in printed
    assert "  multiply-adds an image, 512 outputs, without the tokenizer: forward " in printed
    assert "memory of the backbone, MB: weights " in printed


def test_explain_says_what_becomes_of_a_learning_rate_at_another_batch(capsys: pytest.CaptureFixture[str]) -> None:
    line = "learning rate 1.5e-3 at batch 2048 -> 4.7e-5 at batch 64"
    flags = ["--optimiser.lr", "1.5e-3", "--optimiser.lr-batch-size", "2048", "--plan.batch-size", "64"]
    about = json_of(["explain", "nano", *flags], capsys)
    assert about["pretrain"]["scaling"] == line
    assert max(about["pretrain"]["schedules"]["learning rate"].values()) <= 1.5e-3 / 32
    assert main(["explain", "nano", *flags]) == 0
    assert f"  {line}\n" in capsys.readouterr().out
    assert json_of(["explain", "nano"], capsys)["pretrain"]["scaling"] == ""


def test_explain_takes_the_flags_of_either_stage(capsys: pytest.CaptureFixture[str]) -> None:
    deep = json_of(["explain", "nano", "--backbone.depth", "5"], capsys)
    wide = json_of(["explain", "nano", "--tokenizer.width", "65"], capsys)
    plain = json_of(["explain", "nano"], capsys)
    assert deep["pretrain"]["num_parameters"] > plain["pretrain"]["num_parameters"]
    assert deep["train_tokenizer"] == plain["train_tokenizer"]
    assert wide["train_tokenizer"]["num_parameters"] > plain["train_tokenizer"]["num_parameters"]


def test_explain_refuses_what_neither_stage_knows(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(["explain", "nano", "--backbone.depth", "5", "--backbone.width", "5"], 2, capsys)
    assert line.startswith("error: unknown option '--backbone.width'")


def test_of_a_flag_that_is_given_twice_the_last_counts() -> None:
    """As where a script appends the flags of its user to its own."""
    flags = ["--decoder", "linear", "--seed", "1", "--decoder=cross-attention", "--seed", "2", "--decoder.depth", "3"]
    found = parse(Pretrain, Pretrain(), flags, "pretrain")
    assert (found.decoder, found.seed) == (CrossAttention(depth=3), 2)


def test_explain_names_for_a_tokenizer_the_source_of_its_optimiser(capsys: pytest.CaptureFixture[str]) -> None:
    about = json_of(["explain", "paper"], capsys)
    first, second = ({row["name"]: row for row in about[verb]["fields"]} for verb in ("train_tokenizer", "pretrain"))
    for name in ("lr", "end_lr", "decay_ratio", "betas", "eps", "weight_decay"):
        assert first[f"optimiser.{name}"]["paper"] == "DALL-E, appendix A.2"
    for name in ("clip_grad", "warmup_ratio", "layer_decay"):
        assert first[f"optimiser.{name}"]["paper"] == ""
    assert (second["optimiser.lr"]["paper"], second["optimiser.clip_grad"]["paper"]) == ("BEiT §2.5", "BEiT, table 12")


def test_explain_shows_the_schedules_of_every_discrete_vae(capsys: pytest.CaptureFixture[str]) -> None:
    """DALL-E, appendix A.2: β over 5 000 steps, the temperature over 150 000, both by a cosine of the steps before."""
    schedules = json_of(["explain", "paper"], capsys)["train_tokenizer"]["schedules"]
    assert schedules["KL weight"]["1"] == 0
    assert schedules["KL weight"]["1250"] == pytest.approx(6.6 * (1 - math.cos(math.pi * 1249 / 5000)) / 2)
    assert schedules["KL weight"]["5000"] == pytest.approx(6.6)
    assert schedules["temperature"]["75000"] == pytest.approx((1 + 1 / 16) / 2, rel=1e-4)
    assert schedules["temperature"]["150000"] == pytest.approx(1 / 16)
    assert set(json_of(["explain", "nano"], capsys)["train_tokenizer"]["schedules"]) == set(schedules)


@pytest.mark.parametrize(
    ("recipe", "bare", "whole"), [("paper", 85_798_656, 92_099_072), ("release", 85_665_360, 91_965_776)]
)
def test_explain_counts_the_backbone_and_all_that_pretraining_trains(
    recipe: str, bare: int, whole: int, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json_of(["explain", recipe], capsys)["pretrain"]
    assert (about["num_parameters"], about["num_parameters_whole"]) == (bare, whole)
    assert about["multiply_adds"]["outputs"] == 8192
    assert main(["explain", recipe]) == 0
    assert f"pretrain, {bare:,} parameters; {whole:,} with mask token or decoder, and head\n" in capsys.readouterr().out
