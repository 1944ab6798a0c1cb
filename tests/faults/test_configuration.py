"""Wrong values, wrong files of values, and folders that are not empty: cases J02, J03, J07 and J11 of the list."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.core.config import Field, from_json, kinds, leaves, require_finite, to_json
from smalti.core.errors import CheckpointError, UsageError
from smalti.data.load import Data
from smalti.find_recipe import load_recipe, recipe_names
from smalti.recipes import nano
from smalti.runs.embed import Embed
from smalti.runs.evaluate import Evaluate
from smalti.runs.folder import RunFolder, create, read_config, read_kind
from smalti.runs.masks import Masks
from smalti.runs.prepare import Prepare
from smalti.runs.search import Search
from smalti.runs.show import Show
from smalti.runs.train_tokenizer_config import TrainTokenizer
from tests.small_runs import CPU, flat_pictures, train_tokenizer


def configurations() -> Iterator[tuple[str, Any]]:
    """One of every kind: of all recipes, of all parts that they may have, and of the other verbs."""
    for recipe in recipe_names():
        for verb, function in load_recipe(recipe).items():
            config = function()
            yield f"{recipe}.{verb}", config
            for field in dataclasses.fields(config):
                if dataclasses.is_dataclass(getattr(config, field.name)):
                    for name, kind in kinds(type(config), field.name).items():
                        yield f"{field.name}={name}", kind()
    yield from (("evaluate", Evaluate("m", "i")), ("masks", Masks()), ("prepare", Prepare("d", out="o")))
    yield from (("show", Show("m", ("i",))), ("embed", Embed("m", "i", "o.npy")), ("search", Search("f", ("i",))))


def numbers() -> dict[str, tuple[Any, Field]]:
    """Every number that can be set, by the name of its class and its own; with one configuration that has it."""
    found: dict[str, tuple[Any, Field]] = {}
    for where, config in configurations():
        for leaf in leaves(config):
            if type(leaf.value) in (int, float):
                found.setdefault(f"{where if '=' in where else type(config).__name__}.{leaf.name}", (config, leaf))
    return found


NUMBERS = numbers()


def changed(config: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return dataclasses.replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


@pytest.mark.parametrize("name", NUMBERS)
def test_j02_no_number_may_be_negative_or_none_at_all(name: str) -> None:
    """All of them are counts, sizes, shares or factors. A message names the field, or says what it is."""
    config, leaf = NUMBERS[name]
    with pytest.raises(UsageError) as refused:
        changed(config, leaf.name, type(leaf.value)(-1))
    assert "-1" in str(refused.value)
    if type(leaf.value) is float:
        for value in (math.nan, -math.inf):
            with pytest.raises(UsageError):
                require_finite(changed(config, leaf.name, value))
        written = to_json(config)
        place = written
        *parts, last = leaf.name.split(".")
        for part in parts:
            place = place[part]
        for value in (math.nan, math.inf, -math.inf):
            place[last] = value
            with pytest.raises(UsageError, match=rf"{last} is (nan|-?inf); use a finite number"):
                from_json(type(config), written)


def test_j02_the_numbers_are_found() -> None:
    assert len(NUMBERS) > 60
    assert {"optimiser=optimiser.weight_decay", "backbone=vi-t.num_heads", "Masks.draws"} <= set(NUMBERS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimiser.lr", "nan"], "a learning rate of nan; use a positive one"),
        (["--optimiser.lr", "1e999"], "--optimiser.lr is inf; use a finite number"),
        (["--optimiser.clip-grad", "inf"], "--optimiser.clip-grad is inf; use a finite number"),
        (["--optimiser.betas", "0.9", "nan"], "--optimiser.betas is nan; use a finite number"),
        (["--optimiser.weight-decay", "-1"], "weight_decay is -1.0; use 0 or more"),
        (["--plan.steps", "-3"], "steps is -3; use at least 1"),
        (["--backbone.patch-size", "-4"], "patch_size is -4; use at least 1"),
        (["--backbone.patch-size", "0"], "patch_size is 0; use at least 1"),
        (["--backbone.mlp-ratio", "-1"], "mlp_ratio is -1.0; use a positive one"),
        (["--backbone.patch-size", "5"], "patch_size 5 does not divide img_size 28x28; use an image size that is"),
        (["--masking.num-masked", "49"], "49 patches to mask in a grid of 7 x 7 patches; choose 1 to 48"),
        (["--seed", str(2**64)], f"a seed of {2**64}; use 0 to 2^63 - 1"),
        (["--seed", "-1"], "a seed of -1; use 0 to 2^63 - 1"),
    ],
)
def test_j02_j11_a_wrong_value_is_found_before_images_are_looked_for(
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise AssertionError("values should have been looked at first")

    for name in ("open", "load"):
        monkeypatch.setattr(Data, name, lost)
    given = ["pretrain", "nano", "--data", "nowhere", "--tokenizer", "none", "--out", str(tmp_path / "run"), *flags]
    assert main(given) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train-tokenizer", "nano", "--out", "run", "--seed"],
        ["pretrain", "nano", "--out", "run", "--seed"],
        ["evaluate", "run", "images", "--seed"],
        ["masks", "--seed"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_j11_a_seed_has_a_range(command: list[str], seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, str(seed)]) == 2
    assert capsys.readouterr().err.startswith(f"error: a seed of {seed}; use 0 to 2^63 - 1")


def test_j11_the_greatest_seed_is_one(tmp_path: Path) -> None:
    photos = flat_pictures(tmp_path / "photos", 12)
    assert train_tokenizer(photos, tmp_path / "run", 1, "--seed", str(2**63 - 1)) == 0


HOSTILE = {
    "yaml": b"!!python/object/apply:os.system ['true']",
    "laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]",
    "nested": b'{"smalti": "0", "config": ' + b"[" * 100_000,
    "cut": b'{"smalti": "0", "config": {"kind"',
    "empty": b"",
    "number": b"7",
    "text": b'"config"',
    "list": b'{"smalti": "0", "config": [1, 2]}',
    "no kind": b'{"smalti": "0", "config": {"data": 1}}',
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [lambda run: read_config(run, TrainTokenizer), read_kind])
def test_j03_a_hostile_configuration_is_refused(name: str, read: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError):
        read(str(tmp_path))
    assert main(["train-tokenizer", "--resume", str(tmp_path)]) == 4


def test_j03_a_configuration_of_ten_megabytes_is_not_read(tmp_path: Path) -> None:
    config = {"smalti": "0", "config": to_json(nano.train_tokenizer())}
    (tmp_path / "config.json").write_text(json.dumps(config) + " " * 10_000_000)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged; it has more than 1048576 bytes"):
        read_config(str(tmp_path), TrainTokenizer)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"[]", b"\xff"])
@pytest.mark.parametrize("name", ["result.json", "data.json"])
def test_j03_other_files_of_a_run_that_are_damaged_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    folder = RunFolder(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged; it is (not JSON|nested too deeply|not an object)"):
        folder.read_result() if name == "result.json" else folder.read_data()


def test_j07_a_run_that_is_there_is_named_with_the_flag_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    config = dataclasses.replace(nano.train_tokenizer(), out=str(out))
    create(str(out), config)
    assert main(["train-tokenizer", "nano", "--data", "nowhere", "--out", str(out), *CPU]) == 2
    assert capsys.readouterr().err == (
        f"error: {out} is not empty; a run never overwrites; go on with --resume '{out}', or choose another --out\n"
    )
    assert read_config(str(out), TrainTokenizer) == config
    assert main(["train-tokenizer", "nano", "--data", "nowhere", "--out", str(out), "--overwrite"]) == 2
    assert "unknown option '--overwrite'" in capsys.readouterr().err
