"""Pretraining with an encoder of visible patches: every target, and all that a run can do."""

from pathlib import Path

import pytest
import torch

from smalti.cli import main
from smalti.core.errors import UsageError
from smalti.functional.masking import Blockwise
from smalti.functional.published_masking import Algorithm1, Release
from smalti.models.decoder import CrossAttention
from smalti.runs.pretrain_config import Pretrain
from smalti.training.checkpoint import read_checkpoint
from tests.small_runs import PRETRAIN_FLAGS, metrics, pictures, pretrain, result, train_tokenizer

VISIBLE = ["--decoder", "cross-attention"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("decoder") / "photos")


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    assert train_tokenizer(photos, photos.parent / "tokenizer", 40) == 0
    return photos.parent / "tokenizer"


@pytest.fixture(scope="module")
def plain(photos: Path, tokenizer: Path) -> Path:
    assert pretrain(photos, tokenizer, photos.parent / "plain", 60, *VISIBLE) == 0
    return photos.parent / "plain"


def test_it_learns(plain: Path) -> None:
    losses = [line["loss"] for line in metrics(plain)]
    assert losses[-1] < losses[0] - 0.1
    assert result(plain)["loss_nats"] < losses[0]


def test_the_bound_is_that_of_both_stages(plain: Path) -> None:
    bound = result(plain)["bound"]
    assert bound["trained_rate_nats_per_patch"] < bound["untrained_rate_nats_per_patch"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--target", "soft-tokens"],
        ["--decoder.predicted", "0.25", "--target", "soft-tokens", "--equal-images"],
        ["--decoder.depth", "2", "--decoder.width", "32", "--decoder.num-heads", "2", "--decoder.mix-layers"],
        ["--backbone.positions", "shared_relative", "--backbone.pos-init", "uniform", "--ema-decay", "0.9"],
        ["--backbone.positions", "block_relative", "--backbone.pos-init", "uniform", "--plan.accumulate", "2"],
        ["--masking", "random", "--masking.ratio", "0.75", "--data.memory", "stream"],
        ["--masks-per-image", "4", "--target", "soft-tokens", "--plan.accumulate", "2"],
        ["--masks-per-image", "2", "--data.memory", "stream", "--data.num-workers", "1"],
    ],
)
def test_what_can_be_combined(flags: list[str], photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "run", 4, *VISIBLE, *flags) == 0
    assert result(tmp_path / "run")["steps"] == 4


def test_gradient_checkpointing_changes_nothing(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    for name, flags in {"plain": [], "kept": ["--backbone.grad-checkpointing"]}.items():
        assert pretrain(photos, tokenizer, tmp_path / name, 3, *VISIBLE, *flags) == 0
    one, other = (read_checkpoint(tmp_path / name).model for name in ("plain", "kept"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_token_cache_changes_nothing(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    flags = [*VISIBLE, "--num-views", "2", "--masks-per-image", "2"]
    assert pretrain(photos, tokenizer, tmp_path / "live", 4, *flags) == 0
    assert pretrain(photos, tokenizer, tmp_path / "cached", 4, *flags, "--token-cache", str(tmp_path / "tokens")) == 0
    one, other = (read_checkpoint(tmp_path / name).model for name in ("live", "cached"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_starts_from_another_with_its_decoder_or_without(
    photos: Path, tokenizer: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--init-from", str(plain)]
    assert pretrain(photos, tokenizer, tmp_path / "same", 2, *VISIBLE, *start) == 0
    assert "the decoder and the head" in capsys.readouterr().err
    assert pretrain(photos, tokenizer, tmp_path / "deeper", 2, *VISIBLE, "--decoder.depth", "2", *start) == 0
    assert "the decoder and the head are new" in capsys.readouterr().err
    assert pretrain(photos, tokenizer, tmp_path / "linear", 2, *start) == 0
    assert "the mask token and the head are new" in capsys.readouterr().err


def test_pictures_and_probes_come_from_the_same_model(photos: Path, plain: Path, tmp_path: Path) -> None:
    assert main(["show", str(plain), str(photos), "--out", str(tmp_path / "page.html")]) == 0
    assert "predicted" in (tmp_path / "page.html").read_text()


def test_the_cache_that_tokenize_has_filled_is_used(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*PRETRAIN_FLAGS, "--masks-per-image", "2", "--seed", "0"]
    given = ["--data", str(photos), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "tokens"), *flags]
    assert main(["tokenize", str(photos), "--recipe", "tiny", *given[2:]]) == 0
    monkeypatch.setattr("smalti.data.token_cache.encode", None)
    assert pretrain(photos, tokenizer, tmp_path / "run", 3, *flags, "--token-cache", str(tmp_path / "tokens")) == 0


def test_a_batch_holds_every_mask_of_an_image() -> None:
    with pytest.raises(UsageError, match=r"masks_per_image is 3, and a batch has 256 images; use a divisor"):
        Pretrain(masks_per_image=3)


@pytest.mark.parametrize("masking", [Release(), Algorithm1()])
def test_masks_of_different_sizes_are_refused(masking: Release | Algorithm1) -> None:
    message = r"masks differ in size; an encoder of visible patches needs equal ones; use --masking random or blockwise"
    with pytest.raises(UsageError, match=message):
        Pretrain(decoder=CrossAttention(), masking=masking)
    assert Pretrain(decoder=CrossAttention(), masking=Blockwise()).masking.constant
