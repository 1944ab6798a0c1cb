"""Parts from outside, and runs that are started from Python: what cannot go on is refused before it begins."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import smalti
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import InMemoryData, split_held_out
from smalti.functional.masking import Random
from smalti.recipes import nano
from smalti.training.optim import Optimiser
from smalti.training.targets import Pixels


@dataclass(frozen=True)
class Mine(Random):
    """A masking that no annotation of a configuration names."""


@dataclass(frozen=True)
class Momentum(Optimiser):
    """An optimiser; as an `Optimiser` it would be read back, and resumed."""


@dataclass(frozen=True)
class Halves(Pixels):
    """A target."""


def config(out: Path, **changes: Any) -> smalti.Pretrain:
    start = nano.pretrain()
    return replace(start, out=str(out), device="cpu", precision="fp32", compile="off", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking": Mine()}, "masking is a Mine, and a run folder cannot name it; .* Pretrain.masking in "),
        ({"optimiser": Momentum()}, "optimiser is a Momentum, and a run folder cannot name it"),
        ({"target": Halves()}, "target is a Halves, .* one of: tokens, soft-tokens, pixels; .* docs/own-parts.md"),
        ({"tokenizer": Path("runs/tokenizer")}, "tokenizer is PosixPath.*, expected str"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16', expected one of auto, bf16, fp32"),
    ],
)
def test_a_run_that_could_not_be_read_back_does_not_begin(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """It trained to its end before, and could then be neither loaded nor resumed."""
    with pytest.raises(smalti.SmaltiError, match=message):
        smalti.pretrain(replace(config(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_ones_own_is_refused_too(tmp_path: Path) -> None:
    """Its name would be that of the run, and no verb knows it."""

    @dataclass(frozen=True)
    class Own(smalti.Pretrain):
        pass

    start = config(tmp_path / "run")
    own = Own(**{field.name: getattr(start, field.name) for field in fields(start)})
    with pytest.raises(smalti.SmaltiError, match="a Own, and a run folder cannot name it; give a Pretrain"):
        smalti.pretrain(own)
    assert not (tmp_path / "run").exists()


def given(channels: int) -> InMemoryData:
    pixels = torch.zeros(40, channels, 28, 28, dtype=torch.uint8)
    return split_held_out(InMemoryDataset(pixels, torch.full((40,), -1)), 0.2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 1, 28, 28), "images is a Tensor; give split_held_out"),
        (given(1).train, "images is a InMemoryDataset; give split_held_out"),
        (given(3), "images have 3 channels, and data.channels is 1; replace data.channels by 3, and in_chans"),
    ],
)
@pytest.mark.parametrize("verb", ["train_tokenizer", "pretrain", "finetune"])
def test_what_are_no_images_of_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, images: Any, message: str
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # only tests execute annotations
    start = replace(getattr(nano, verb)(), out=str(tmp_path / "run"), device="cpu", precision="fp32")
    with pytest.raises(smalti.SmaltiError, match=message):
        getattr(smalti, verb)(start, images=images)
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_before_its_first_step_can_be_tried_again(tmp_path: Path) -> None:
    """From Python as from the command line: its folder does not stand in the way."""
    for _ in range(2):
        with pytest.raises(smalti.SmaltiError, match="nowhere is no run folder"):
            smalti.pretrain(config(tmp_path / "run", tokenizer="nowhere"))
        assert not (tmp_path / "run").exists()
