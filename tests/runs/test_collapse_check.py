"""The gate before stage two."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.errors import RefusedError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.code_information import CodeInformation, Shared
from smalti.evaluation.token_sample import fit_kmeans_baseline, some_images
from smalti.functional.metrics import CodebookUse
from smalti.runs.pretraining_checks import collapse_faults, gate, information_faults
from tests.small_runs import metrics, pictures, pretrain, train_tokenizer, weights
from tests.test_contracts import GreyLevels

CPU = Compute(torch.device("cpu"), torch.float32)


def noise(count: int = 200, seed: int = 0) -> Tensor:
    """Patches of every brightness."""
    rng = torch.Generator().manual_seed(seed)
    levels = torch.randint(200, (count, 1, 2, 2), generator=rng).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (levels + torch.randint(56, (count, 3, 8, 8), generator=rng)).to(torch.uint8)


class Lazy(GreyLevels):
    """Two of its codes serve for everything."""

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images) % 2


def use(used: float, perplexity: float, tokens: int = 10_000) -> CodebookUse:
    return CodebookUse(used=used, perplexity=perplexity, entropy=0.0, top_share=0.1, tokens=tokens)


def test_a_collapsed_tokenizer_is_refused_with_what_was_measured_and_what_to_change() -> None:
    with pytest.raises(RefusedError) as caught:
        gate(Lazy(vocab_size=16), noise(), noise(seed=1), CPU, Log())
    assert caught.value.exit_code == 9
    assert caught.value.what.startswith("the tokenizer has collapsed: its perplexity is 0.1")
    assert "of k-means' (least: 0.6) and less than half of the codes are used" in caught.value.what
    assert "it has 12.5% of 16 codes and a perplexity of 2.0 on 800 held-out tokens" in caught.value.cause
    assert "where k-means on the same patches has 100.0% and 1" in caught.value.cause
    for flag in ("--relaxation.spread", "--tokenizer.vocab-size", "--plan.steps", "--accept-tokenizer"):
        assert flag in caught.value.fix
    assert "\n" not in str(caught.value)


def test_it_can_be_accepted_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    gate(Lazy(vocab_size=16), noise(), noise(seed=1), CPU, Log(), accept=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "a perplexity of 2.0 on 800 held-out tokens" in said
    assert "collapsed, and accepted: its perplexity is" in said


class Placed(GreyLevels):
    """Its codes name the position of a patch."""

    def encode(self, images: Tensor) -> Tensor:
        ids = super().encode(images)
        return torch.arange(ids[0].numel()).view(ids[0].shape).expand_as(ids)


def test_codes_that_name_positions_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"its codes tell where a patch is \(2.00 of 2.00 bits\), and hardly what"):
        gate(Placed(vocab_size=4), noise(), noise(seed=1), CPU, Log())


def test_positions_may_be_told_where_pixels_tell_them_too_or_there_are_few_tokens() -> None:
    def told(bits: float, by_chance: float = 0.1) -> CodeInformation:
        return CodeInformation(Shared(bits, by_chance), Shared(0.0, 0.0), None)

    assert len(information_faults(told(5.9), told(0.5), 64)) == 1
    assert information_faults(told(5.9), told(3.1), 64) == []
    assert information_faults(told(5.3), told(0.5), 64) == []
    assert information_faults(told(5.9, 3.1), told(0.5), 64) == []
    assert information_faults(told(0.0, 0.0), told(0.0, 0.0), 1) == [], "there is one position"


@pytest.mark.parametrize("vocab_size", [16, 512])
def test_a_sound_tokenizer_passes_also_where_there_are_few_tokens_for_its_codes(
    vocab_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = fit_kmeans_baseline(noise(seed=2), vocab_size, 4)
    assert tokenizer is not None
    gate(tokenizer, noise(), noise(seed=1), CPU, Log(), labels=torch.arange(200) % 2)
    said = " ".join(capsys.readouterr().err.split())
    assert "collapsed" not in said
    assert re.search(r"a code shares \S+ bits with its position \(\S+ by chance\), \S+ bits with its colour", said)
    assert re.search(r"bits with its class \(\S+ by chance\); of k-means a code shares ", said)


@pytest.mark.parametrize("held_out", [noise(20), torch.full((400, 3, 8, 8), 7, dtype=torch.uint8)])
def test_there_is_no_verdict_without_tokens(held_out: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    gate(Lazy(vocab_size=16), held_out, noise(seed=1), CPU, Log())
    assert "held-out tokens are too few to judge it by" in capsys.readouterr().err


def test_training_images_without_structure_give_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    gate(Lazy(vocab_size=16), noise(), torch.zeros(9, 3, 8, 8), CPU, Log())
    assert "too few to judge it by" in capsys.readouterr().err


def test_perplexity_is_compared_with_that_of_kmeans() -> None:
    assert collapse_faults(use(1.0, 61.0), use(1.0, 100.0), 128) == []
    assert collapse_faults(use(1.0, 59.0), use(1.0, 100.0), 128) == ["its perplexity is 0.59 of k-means' (least: 0.6)"]


def test_half_of_the_codes_must_be_used_where_there_are_tokens_enough() -> None:
    assert collapse_faults(use(0.51, 90.0), use(1.0, 100.0), 1000) == []
    assert collapse_faults(use(0.49, 90.0), use(0.7, 100.0), 1000) == ["less than half of the codes are used"]


def test_with_few_tokens_use_is_compared_with_that_of_kmeans() -> None:
    assert collapse_faults(use(0.3, 90.0), use(0.5, 100.0), 1001) == []
    assert collapse_faults(use(0.2, 90.0), use(0.5, 100.0), 1001) == [
        "less than half of the codes that k-means uses are used"
    ]


def test_images_for_the_yardstick_come_from_everywhere() -> None:
    images = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    some = some_images(InMemoryDataset(images, torch.arange(100)), 4, 5)[:, 0, 0, 0]
    assert [place // 20 for place in some.tolist()] == [0, 1, 2, 3, 4]
    assert len(some_images(InMemoryDataset(images, torch.arange(100)), 4)) == 100


def test_pretraining_refuses_a_collapsed_tokenizer_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = pictures(tmp_path / "photos", per_class=24), tmp_path / "run"
    bad = ["--relaxation.beta", "100", "--relaxation.beta-ramp", "0.05", "--optimiser.lr", "0.1"]
    assert train_tokenizer(photos, tmp_path / "bad", 30, *bad) == 0
    capsys.readouterr()
    assert pretrain(photos, tmp_path / "bad", run, 2) == 9
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the tokenizer has collapsed: its perplexity is")
    assert not run.exists()
    assert pretrain(photos, tmp_path / "bad", run, 2, "--accept-tokenizer") == 0
    assert "collapsed, and accepted" in capsys.readouterr().err


def test_the_gate_changes_nothing_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = pictures(tmp_path / "photos", per_class=24)
    assert train_tokenizer(photos, tmp_path / "tokenizer", 20) == 0
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "with", 2) == 0
    monkeypatch.setattr("smalti.runs.pretrain.gate", lambda *_, **__: None)
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "without", 2) == 0
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
