"""Stage one with every kind of tokenizer, from the command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.cli import main
from smalti.core.compute import Compute
from smalti.core.config import from_json, to_json
from smalti.core.errors import UsageError
from smalti.data.load import Data
from smalti.recipes import fsq, kmeans, random_projection, vq
from smalti.runs.tokenizers import load_tokenizer
from smalti.runs.train_tokenizer import TrainTokenizer, build_objective
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.quantised import FSQ, VQ, VectorQuantised
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from tests.small_runs import CPU, interrupted_before, metrics, newest_checkpoint, pictures, pretrain, result, weights

COMPUTE = Compute(torch.device("cpu"), torch.float32)
FLAGS = [*CPU, "--data.side", "16", "--data.held-out", "0.2", "--plan.batch-size", "16", "--plan.log-every", "1"]
SMALL = {
    "vq": ["--tokenizer.vocab-size", "16", "--tokenizer.width", "8", "--tokenizer.code-dim", "4"],
    "fsq": ["--tokenizer.levels", "4", "3", "--tokenizer.width", "8"],
    "kmeans": ["--tokenizer.vocab-size", "16"],
    "random_projection": ["--tokenizer.vocab-size", "16"],
    "dalle": ["--tokenizer.vocab-size", "16", "--tokenizer.width", "4", "--tokenizer.depth", "1"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images") / "photos")


def train(kind: str, photos: Path, out: Path, *flags: str, steps: int = 4) -> int:
    """`smalti train-tokenizer` of one kind; the exit code."""
    given = ["--data", str(photos), "--out", str(out), "--plan.steps", str(steps), *FLAGS, *SMALL[kind], *flags]
    return main(["train-tokenizer", kind, *given])


@pytest.mark.parametrize("kind", SMALL)
def test_every_kind_is_made_saved_measured_and_loaded(kind: str, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(kind, photos, run) == 0
    found, fitted = result(run), kind in ("kmeans", "random_projection")
    assert {"psnr_db", "codebook_usage", "perplexity"} <= set(found)
    assert found["steps"] == (0 if fitted else 4)
    assert newest_checkpoint(run).name == f"step-0000000{found['steps']}"
    tokenizer = load_tokenizer(str(run), COMPUTE)
    assert tokenizer.vocab_size == found["vocab_size"] == (12 if kind == "fsq" else 16)
    assert tokenizer.config.in_chans == 3
    assert not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    if not fitted:
        assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
        own = {"vq": {"gap", "alive", "perplexity"}, "fsq": {"gap"}, "dalle": {"kl", "codes"}}
        assert {"nll"} | own[kind] <= set(metrics(run)[0])


@pytest.mark.parametrize("kind", ["vq", "fsq", "kmeans"])
def test_pretraining_takes_every_kind(kind: str, photos: Path, tmp_path: Path) -> None:
    assert train(kind, photos, tmp_path / "tokenizer") == 0
    assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "backbone", 2) == 0
    assert result(tmp_path / "backbone")["loss_nats"] > 0


@pytest.mark.parametrize("stop", [4, 5])
@pytest.mark.parametrize("extra", [[], ["--tokenizer.dead-after", "1", "--ema-decay", "0.5"]], ids=["alive", "dying"])
def test_an_interrupted_quantiser_goes_on_as_if_nothing_had_happened(
    stop: int, extra: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--plan.save-every", "2", *extra]
    assert train("vq", photos, tmp_path / "whole", *flags, steps=7) == 0
    with interrupted_before(stop, monkeypatch):
        assert train("vq", photos, tmp_path / "run", *flags, steps=7) == 130
    assert newest_checkpoint(tmp_path / "run").name == "step-00000004"
    assert main(["train-tokenizer", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_resumed_dvae_remembers_which_codes_are_dying(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--tokenizer.vocab-size", "64", "--tokenizer.stride", "4", "--tokenizer.width", "8"]
    flags = [*FLAGS, *small, "--data", str(photos), "--plan.steps", "7", "--plan.save-every", "3"]

    def dvae(out: Path, *more: str) -> int:
        return main(["train-tokenizer", "tiny", *flags, "--out", str(out), *more])

    revive = ("--relaxation.dead-after", "2")
    assert dvae(tmp_path / "plain") == dvae(tmp_path / "whole", *revive) == 0
    assert weights(tmp_path / "plain")["model.safetensors"] != weights(tmp_path / "whole")["model.safetensors"]
    with interrupted_before(5, monkeypatch):
        assert dvae(tmp_path / "run", *revive) == 130
    assert main(["train-tokenizer", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_fitting_the_same_command_again_ends_in_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert train("kmeans", photos, tmp_path / name) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert main(["train-tokenizer", "--resume", str(tmp_path / "one")]) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")


def test_the_buffers_of_a_loaded_quantiser_are_those_it_was_saved_with(photos: Path, tmp_path: Path) -> None:
    assert train("vq", photos, tmp_path / "run") == 0
    tokenizer = load_tokenizer(str(tmp_path / "run"), COMPUTE)
    assert isinstance(tokenizer, VectorQuantised)
    fresh = tokenizer.config.build()
    assert not torch.equal(tokenizer.codes, fresh.codes)
    assert float(tokenizer.sizes.sum()) > 0


@pytest.mark.parametrize(
    "tokenizer",
    [DVAE(16, 4), VQ(16, 4), FSQ((5, 4), 4), KMeansPatches(16, 4), RandomProjection(16, 4)],
    ids=lambda tokenizer: type(tokenizer).__name__,
)
def test_a_configuration_comes_back_from_json_with_its_kind(tokenizer: Any) -> None:
    config = TrainTokenizer(data=Data(side=32), tokenizer=tokenizer)
    assert from_json(TrainTokenizer, to_json(config)) == config


def test_a_baseline_has_no_objective() -> None:
    config = kmeans.train_tokenizer()
    with pytest.raises(UsageError, match="a KMeansPatches tokenizer is fitted, not trained"):
        build_objective(config, config.tokenizer.build())


def test_the_recipes_of_one_size_differ_in_the_tokenizer_only() -> None:
    made = [recipe.train_tokenizer() for recipe in (vq, fsq, kmeans, random_projection)]
    assert [type(config.tokenizer) for config in made] == [VQ, FSQ, KMeansPatches, RandomProjection]
    assert len({(config.data, config.tokenizer.stride, config.crop) for config in made}) == 1
    assert replace(made[0], tokenizer=made[1].tokenizer) == made[1]


def test_no_images_to_start_from_means_random_weights(photos: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--tokenizer.width", "8", "--tokenizer.vocab-size", "16", "--init-images", "0"]
    given = ["--data", str(photos), "--out", str(tmp_path / "run"), "--plan.steps", "1", "--optimiser.end-lr", "1e-9"]
    assert main(["train-tokenizer", "tiny", *flags, *given]) == 0
    random = DVAE(vocab_size=16, width=8, depth=2).build().state_dict()
    trained = load_tokenizer(str(tmp_path / "run"), COMPUTE).state_dict()
    assert all(torch.allclose(trained[name], random[name], atol=1e-6) for name in random)


def test_what_is_fitted_needs_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("kmeans", photos, tmp_path / "run", "--init-images", "0") == 2
    assert "a tokenizer fitted to no images; use more init_images" in capsys.readouterr().err
    assert train("vq", photos, tmp_path / "run", "--init-images", "-1") == 2
    assert "init_images is -1; use 0 or more" in capsys.readouterr().err
