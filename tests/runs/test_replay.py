"""A step that is not finite: what is left of it, and computing it again."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.cli import main
from smalti.core.contracts import Batch
from smalti.training.trainer import Trainer
from tests.small_runs import (
    CPU,
    finetune,
    metrics,
    newest_checkpoint,
    pictures,
    pretrain,
    result,
    train_tokenizer,
    weights,
)

STREAM = ["--data.memory", "stream", "--data.num-workers", "0"]
FILES = {"config.json", "data.json", "model.safetensors", "state.safetensors", "step.json", "MANIFEST.json"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("replay") / "photos")


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    assert train_tokenizer(photos, photos.parent / "tokenizer", 3) == 0
    return photos.parent / "tokenizer"


@contextmanager
def broken_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> Iterator[None]:
    """The images of some steps are no numbers, as a fault of memory may make them."""
    whole = Trainer.gradients

    def gradients(trainer: Trainer, batch: Batch, *arguments: Any) -> Any:
        if trainer.step in steps:
            batch = replace(batch, image=torch.full(batch.image.shape, float("nan")))
        return whole(trainer, batch, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradients", gradients)
        yield


def huge_rate(run: Callable[..., int], *where: Path) -> int:
    """A learning rate with which any network is at infinity after a few steps (I05)."""
    return run(*where, 40, "--optimiser.lr", "1e30", "--optimiser.warmup-ratio", "0")


def replayed(captured: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["replay", str(captured), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize("flags", [[], STREAM], ids=["resident", "stream"])
def test_a_fine_tuning_step_that_stops_the_run_can_be_computed_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert huge_rate(lambda data, out, *given: finetune(data, "", out, *given, *flags), photos, tmp_path / "run") == 5
    (captured,) = (tmp_path / "run" / "captures").iterdir()
    found = replayed(captured, capsys)
    assert (found["reproduced"], found["step"]) == (True, int(captured.name.removeprefix("step-")))


@pytest.mark.parametrize("flags", [[], STREAM], ids=["resident", "stream"])
def test_a_pretraining_step_that_stops_the_run_can_be_computed_again(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert huge_rate(lambda *given: pretrain(*given, *flags), photos, tokenizer, tmp_path / "run") == 5
    line = capsys.readouterr().err.splitlines()[-1]
    (captured,) = (tmp_path / "run" / "captures").iterdir()
    step = int(captured.name.removeprefix("step-"))
    assert line.startswith(f"error: the gradient is not finite at step {step}; loss ")
    assert line.endswith(
        "; lower the learning rate or lengthen the warm-up (--optimiser.lr, --optimiser.warmup-ratio);"
        f" the step is kept, look at it with smalti replay {captured}"
    )
    assert {path.name for path in captured.iterdir()} == FILES
    said = json.loads((captured / "step.json").read_text())
    assert (said["step"], len(said["index"]), len(said["keys"])) == (step, 16, 16)
    moved = shutil.copytree(captured, tmp_path / "moved")
    found = replayed(moved, capsys)
    assert (found["reproduced"], found["step"]) == (True, step)
    assert (found["loss"], found["grad_norm"]) == (said["loss"], said["grad_norm"])
    assert found["first"]["kind"] in {"activation", "gradient"}
    assert {path.name for path in moved.iterdir()} == FILES, "a replay writes nothing"


def test_a_tokenizer_step_that_stops_the_run_can_be_computed_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert huge_rate(train_tokenizer, photos, tmp_path / "run") == 5
    (captured,) = (tmp_path / "run" / "captures").iterdir()
    assert replayed(captured, capsys)["reproduced"] is True
    assert main(["replay", str(captured)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"step {int(captured.name[5:])}: loss ")
    assert first.endswith(", equal to the numbers of the run")
    assert second.startswith("first not finite: ")


def test_what_does_not_come_out_the_same_is_said(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with broken_at(monkeypatch, {0}):
        assert pretrain(photos, tokenizer, tmp_path / "run", 2) == 5
    captured = tmp_path / "run" / "captures" / "step-00000000"
    assert "; loss nan; " in capsys.readouterr().err
    assert main(["replay", str(captured)]) == 9
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "nothing is out of range"
    assert printed.err.splitlines()[-1].startswith("error: step 0 is not reproduced bit for bit; loss nan then, ")
    with broken_at(monkeypatch, {0}):
        assert replayed(captured, capsys)["first"] == {"kind": "activation", "name": "backbone.patch_embed.proj"}


def test_a_captured_step_that_is_damaged_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path)]) == 4
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is no whole captured step; no readable MANIFEST.json there;"
        " give a folder in captures/ of a run that stopped at a step that is not finite\n"
    )


def test_a_replay_needs_the_images_of_the_run(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = pictures(tmp_path / "photos")
    with broken_at(monkeypatch, {0}):
        assert pretrain(photos, tokenizer, tmp_path / "run", 1) == 5
    next(photos.rglob("*.png")).unlink()
    assert main(["replay", str(tmp_path / "run" / "captures" / "step-00000000")]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: the images are not those of the run; {photos}; bring them back"


def test_steps_that_may_be_left_out_are_counted_also_over_a_resume(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the first step, before the optimiser knows anything."""
    flags = ["--plan.skip-nonfinite", "2", "--plan.save-every", "1"]
    with broken_at(monkeypatch, {0, 2}):
        assert pretrain(photos, tokenizer, tmp_path / "whole", 5, *flags) == 0
    said = capsys.readouterr().err
    assert "skipped: the gradient is not finite at step 0; loss nan; 1 of at most 2\n" in said
    assert [(line["step"], line["skipped"]) for line in metrics(tmp_path / "whole")] == [(2, 1), (4, 2), (5, 2)]
    with broken_at(monkeypatch, {0, 2, 3}):
        assert pretrain(photos, tokenizer, tmp_path / "run", 5, *flags) == 5
    assert newest_checkpoint(tmp_path / "run").name == "step-00000003"
    assert [path.name for path in (tmp_path / "run" / "captures").iterdir()] == ["step-00000003"]
    with broken_at(monkeypatch, {3}):
        assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 5
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_step_that_cannot_be_kept_still_says_what_happened(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, files: dict[str, bytes]) -> None:
        from smalti.core.errors import OutputError

        raise OutputError(f"cannot write {path}", cause="No space left on device")

    monkeypatch.setattr("smalti.training.nonfinite.write_folder", full)
    with broken_at(monkeypatch, {0}):
        assert train_tokenizer(photos, tmp_path / "run", 1, *CPU) == 5
    *_, before, last = capsys.readouterr().err.splitlines()
    assert before.startswith("the step cannot be kept: cannot write ")
    assert before.endswith("step-00000000; No space left on device")
    assert last.startswith("error: the gradient is not finite at step 0; loss nan; lower the learning rate")
