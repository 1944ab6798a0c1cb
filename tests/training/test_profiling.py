"""What a run says about where its steps spend their time."""

import json
from pathlib import Path

import pytest
import torch

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training.profiling import Profiled
from tests import small_runs


class Lines(Log):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Numbered:
    """Batches that are not looked at."""

    wait_seconds = 0.5

    def __init__(self) -> None:
        self.closed = False

    def __call__(self, step: int) -> Batch:
        return step  # type: ignore[return-value]

    def close(self) -> None:
        self.closed = True


def train(tmp_path: Path, profiled: int, steps: int) -> tuple[list[str], Numbered]:
    """What is said over a run whose step is one matrix product and one addition."""
    log, batches = Lines(), Numbered()
    recorded = Profiled(batches, profiled, tmp_path, log)
    square = torch.ones(300, 300)
    for step in range(steps):
        assert recorded(step) is batches(step)
        (square @ square).add_(1)
    assert recorded.wait_seconds == 0.5
    recorded.close()
    return log.lines, batches


@pytest.mark.parametrize(("profiled", "steps", "found"), [(2, 9, 2), (4, 7, 4), (4, 5, 2)])
def test_the_steps_after_the_first_three_are_recorded(tmp_path: Path, profiled: int, steps: int, found: int) -> None:
    lines, batches = train(tmp_path, profiled, steps)
    assert lines[0] == f"{tmp_path / 'profile.json'}: {found} steps"
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == found
    assert batches.closed


def test_the_table_begins_with_what_takes_longest(tmp_path: Path) -> None:
    lines, _ = train(tmp_path, 3, 6)
    assert any(line.endswith("aten::mm") for line in lines[1:-1])
    shares = [float(line.split("ms")[1].split("%")[0]) for line in lines[1:]]
    assert shares[:-1] == sorted(shares[:-1], reverse=True)
    assert sum(shares) == pytest.approx(100, abs=len(shares))
    assert lines[-1].endswith("all other operations")


def test_a_run_of_three_steps_has_nothing_to_record(tmp_path: Path) -> None:
    lines, batches = train(tmp_path, 2, 3)
    assert lines == ["nothing is profiled: the first 3 steps warm up, and there are no more"]
    assert not (tmp_path / "profile.json").exists()
    assert batches.closed


def test_both_stages_can_be_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, tokenizer, run = small_runs.pictures(tmp_path / "data"), tmp_path / "tokenizer", tmp_path / "run"
    assert small_runs.train_tokenizer(data, tokenizer, 5, "--profile", "1") == 0
    assert small_runs.pretrain(data, tokenizer, run, 5, "--profile", "2", "--accept-tokenizer") == 0
    said = capsys.readouterr().err
    for folder, steps in ((tokenizer, 1), (run, 2)):
        assert json.loads((folder / "profile.json").read_text())["traceEvents"]
        assert f"{folder.name}/profile.json: {steps} steps" in said
    assert said.count("first step after") == 2


@pytest.mark.parametrize("config", [Pretrain, TrainTokenizer])
def test_fewer_than_no_steps_are_refused(config: type[Pretrain | TrainTokenizer]) -> None:
    with pytest.raises(UsageError, match="profile is -1; use 0 or more steps"):
        config(profile=-1)
