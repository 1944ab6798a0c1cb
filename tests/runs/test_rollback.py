"""I04: after a loss that jumped a run goes back to its last checkpoint, and leaves out the images since."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.cli import main
from smalti.core.errors import UsageError
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan
from tests.faults.changes import SPIKES, spikes
from tests.small_runs import metrics, newest_checkpoint, pictures, pretrain, result, train_tokenizer, weights

ONCE = ("--plan.rollback", "1", "--plan.save-every", "5", "--ema-decay", "0.9")
STEPS = 30


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("rollback") / "photos")


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    assert train_tokenizer(photos, photos.parent / "tokenizer", 3) == 0
    return photos.parent / "tokenizer"


@pytest.fixture(autouse=True)
def _spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_gradients", Trainer._gradients)  # which gives it back
    spikes()


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    from smalti.training.checkpoint import read_checkpoint

    found = read_checkpoint(run, until=step)
    assert found.step == step
    return found.model | {f"state.{name}": value for name, value in found.state.items()}


def test_a_run_rolls_back_and_says_so(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, jump = tmp_path / "run", SPIKES[0]
    assert pretrain(photos, tokenizer, run, jump, *ONCE) == 0
    said = capsys.readouterr().err.splitlines()
    place = next(number for number, line in enumerate(said) if line.startswith("warning: the loss jumps to "))
    assert said[place + 1] == (
        f"rolled back to step 20: the images since are left out, step {jump + 1} is next; 1 of at most 1 times"
    )
    before, after = tensors(run, 20), tensors(run, jump)
    assert before.keys() == after.keys()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing == {"state.count.rollbacks"}, "weights, averages and moments are those of step 20"
    assert (int(before["state.count.rollbacks"]), int(after["state.count.rollbacks"])) == (0, 1)
    assert len(before["state.count.losses"]) == 20


def test_the_batches_go_on_where_the_run_is(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do the schedules; the images of the steps that were undone do not come again."""
    seen: list[tuple[int, tuple[int, ...]]] = []
    whole = Trainer.train_step

    def look(trainer: Trainer, batch: Any, *arguments: Any, **named: Any) -> Any:
        seen.append((trainer.step, tuple(batch.key.tolist())))
        return whole(trainer, batch, *arguments, **named)

    monkeypatch.setattr(Trainer, "train_step", look)
    assert pretrain(photos, tokenizer, tmp_path / "run", STEPS, *ONCE) == 0
    assert [step for step, _ in seen] == list(range(STEPS))
    assert len({keys for _, keys in seen}) == STEPS
    counts = [line["rollbacks"] for line in metrics(tmp_path / "run")]
    assert counts == [0] * SPIKES[0] + [1] * (STEPS - SPIKES[0])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_checkpoint_that_a_signal_asked_for_changes_nothing(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Also three of them in a row, which must not push out the one that the run goes back to."""
    assert pretrain(photos, tokenizer, tmp_path / "whole", STEPS, *ONCE) == 0
    whole = Trainer.train_step

    def with_signal(trainer: Trainer, *arguments: Any, **named: Any) -> Any:
        if trainer.step in (20, 21, 22):
            signal.raise_signal(number)
        return whole(trainer, *arguments, **named)

    monkeypatch.setattr(Trainer, "train_step", with_signal)
    run = tmp_path / "run"
    code = pretrain(photos, tokenizer, run, STEPS, *ONCE)
    while code == 75:
        code = main(["pretrain", "--resume", str(run)])
    assert code == 0
    for read in (weights, metrics, result):
        assert read(run) == read(tmp_path / "whole")


def test_without_a_checkpoint_there_is_only_the_warning(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--plan.rollback", "1", "--plan.save-every", "100")
    assert pretrain(photos, tokenizer, tmp_path / "run", STEPS, *flags) == 0
    assert "no checkpoint to go back to: no checkpoints/step-* there" in capsys.readouterr().err.splitlines()
    assert metrics(tmp_path / "run")[-1]["rollbacks"] == 0


def test_off_by_default(photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "run", 26, "--plan.save-every", "5") == 0
    said = capsys.readouterr().err
    assert "warning: the loss jumps to " in said
    assert "roll" not in said
    assert "rollbacks" not in metrics(tmp_path / "run")[-1]
    assert not any("count." in name for name in tensors(tmp_path / "run", 26))
    assert newest_checkpoint(tmp_path / "run").name == "step-00000026"


def test_where_a_run_rolls_back_to_is_part_of_its_settings(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "run", 6, *ONCE) == 0
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--plan.save-every", "3"]) == 2
    assert "cannot go on bit for bit; plan.save_every 5 -> 3; go on" in capsys.readouterr().err.splitlines()[-1]


def test_no_fewer_than_no_rollbacks() -> None:
    with pytest.raises(UsageError, match="rollback is -1; use 0 or more times"):
        Plan(rollback=-1)


def test_what_is_due_and_what_a_signal_asked_for() -> None:
    assert [Plan(save_every=5).scheduled(step) for step in (0, 4, 5, 9, 10)] == [0, 0, 5, 5, 10]
