"""Stage one with every kind of tokenizer, from the command line."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smalti.cli import main
from smalti.core.compute import Compute
from smalti.core.config import from_json, to_json
from smalti.core.errors import UsageError
from smalti.data.load import Data
from smalti.data.token_cache import network_digest
from smalti.models.vit import ViT
from smalti.recipes import fsq, kmeans, random_projection, vq
from smalti.runs.network import load_network
from smalti.runs.tokenizers import load_tokenizer
from smalti.runs.train_tokenizer import build_objective
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.quantised import FSQ, VQ, VectorQuantised
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from smalti.tokenizers.vqkd import VQKD
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


@pytest.mark.parametrize("kind", ["tiny", "vq", "kmeans"])
def test_muon_is_refused_where_there_are_no_matrices_of_blocks(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before an image is read or a folder made."""
    given = ["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"), "--optimiser.matrices", "muon"]
    assert main(["train-tokenizer", kind, *CPU, *given]) == 2
    error = "error: Muon for a tokenizer without Transformer blocks; use --optimiser.matrices adamw"
    assert capsys.readouterr().err.splitlines()[-1] == error
    assert not (tmp_path / "out").exists()


def test_fitting_the_same_command_again_ends_in_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert train("kmeans", photos, tmp_path / name) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert main(["train-tokenizer", "--resume", str(tmp_path / "one")]) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")


def features(teacher: Path, data: Path, out: Path, *flags: str) -> int:
    """`smalti train-tokenizer features`; the exit code."""
    given = ["--tokenizer.teacher", str(teacher), "--data", str(data), "--data.held-out", "0.2", "--out", str(out)]
    return main(["train-tokenizer", "features", *CPU, *given, *flags])


def test_a_second_round_on_the_features_of_the_first(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher is inside the tokenizer, so it may go; what is interrupted ends in the same bits."""
    photos, teacher, tokenizer = runs / "photos", tmp_path / "first", tmp_path / "tokenizer"
    shutil.copytree(runs / "beit", teacher)
    for out in (tokenizer, tmp_path / "again"):
        assert features(teacher, photos, out) == 0
    assert "teacher: block 2 of 2 of " in capsys.readouterr().err
    assert weights(tokenizer) == weights(tmp_path / "again")
    shutil.rmtree(teacher)
    (tmp_path / "again" / "result.json").unlink()
    assert main(["train-tokenizer", "--resume", str(tmp_path / "again")]) == 0
    assert result(tmp_path / "again") == result(tokenizer)
    assert result(tokenizer)["vocab_size"] == 64

    more = ["--plan.save-every", "1", "--backbone.depth", "3"]
    assert pretrain(photos, tokenizer, tmp_path / "whole", 3, *more) == 0
    with interrupted_before(2, monkeypatch):
        assert pretrain(photos, tokenizer, tmp_path / "run", 3, *more) == 130
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_tokens_of_features_are_known_by_the_weights_of_their_teacher(runs: Path, tmp_path: Path) -> None:
    """Not by where it was: the digest is part of the key of a token cache."""
    moved, found = tmp_path / "moved", []
    shutil.copytree(runs / "beit", moved)
    for number, teacher in enumerate((runs / "beit", moved, runs / "crossed", runs / "classes")):
        assert features(teacher, runs / "photos", tmp_path / f"{number}", "--tokenizer.vocab-size", "16") == 0
        found.append(network_digest(load_tokenizer(str(tmp_path / f"{number}"), COMPUTE)))
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert main(["export", str(tmp_path / "1"), "--out", str(tmp_path / "bundle")]) == 0
    assert network_digest(load_tokenizer(str(tmp_path / "bundle"), COMPUTE)) == found[0]
    assert str(moved) not in (tmp_path / "bundle" / "config.json").read_text()


def test_what_cannot_teach_is_refused_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = runs / "photos", tmp_path / "run"
    assert features(tmp_path / "none", photos, run) == 4
    assert f"{tmp_path / 'none'} is no run folder" in capsys.readouterr().err
    assert features(runs / "tokenizer", photos, run) == 2
    assert f"{runs / 'tokenizer'} is a run of train-tokenizer; features are those of a" in capsys.readouterr().err
    assert features(runs / "beit", photos, run, "--tokenizer.layer", "3") == 2
    assert "layer 3 of a teacher of 2 blocks; use 1 to 2" in capsys.readouterr().err
    assert main(["train-tokenizer", "features", *CPU, "--data", str(photos), "--out", str(run)]) == 2
    assert "no teacher given; use --tokenizer.teacher MODEL" in capsys.readouterr().err
    assert not run.exists()
    assert features(runs / "beit", photos, run) == 0
    other = ["--backbone.img-size", "24", "24"]
    assert pretrain(photos, run, tmp_path / "student", 1, *other) == 2
    assert (
        "error: the teacher of the tokenizer has 4x4 patches, and the backbone 6x6; give them the same grid: "
        "--backbone.img-size divided by --backbone.patch-size" in capsys.readouterr().err
    )


def vqkd(teacher: Path, data: Path, out: Path, *flags: str) -> int:
    """`smalti train-tokenizer vqkd` with a tiny network; the exit code."""
    small = ["--tokenizer.vocab-size", "16", "--tokenizer.code-dim", "4", "--tokenizer.decoder-depth", "1"]
    plan = ["--plan.batch-size", "16", "--plan.log-every", "1", "--plan.repeat", "--plan.steps", "5", "--data.held-out"]
    given = ["--tokenizer.teacher", str(teacher), "--data", str(data), "--out", str(out)]
    return main(["train-tokenizer", "vqkd", *CPU, *small, *plan, "0.2", *given, *flags])


def test_vqkd_learns_from_a_teacher_which_may_move_while_it_learns_and_go_afterwards(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, teacher, moved = runs / "photos", tmp_path / "first", tmp_path / "moved"
    shutil.copytree(runs / "beit", teacher)
    flags = ["--plan.save-every", "2", "--tokenizer.dead-after", "1", "--ema-decay", "0.5"]
    assert vqkd(teacher, photos, tmp_path / "whole", *flags) == 0
    assert "teacher: block 2 of 2 of " in capsys.readouterr().err
    with interrupted_before(4, monkeypatch):
        assert vqkd(teacher, photos, tmp_path / "run", *flags) == 130
    go_on = ["train-tokenizer", "--resume", str(tmp_path / "run")]
    shutil.move(teacher, moved)
    assert main(go_on) == 4
    assert main([*go_on, "--tokenizer.teacher", str(runs / "crossed")]) == 2
    assert "the teacher has other weights than it had" in capsys.readouterr().err
    assert main([*go_on, "--tokenizer.teacher", str(moved)]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert {"cosine", "gap", "alive", "perplexity"} <= set(metrics(tmp_path / "run")[0])
    shutil.rmtree(moved)
    assert pretrain(photos, tmp_path / "run", tmp_path / "second", 1, "--accept-tokenizer") == 0


def test_a_step_of_vqkd_that_stops_the_run_can_be_computed_again(runs: Path, tmp_path: Path) -> None:
    huge = ["--optimiser.lr", "1e30", "--optimiser.warmup-ratio", "0"]
    assert vqkd(runs / "beit", runs / "photos", tmp_path / "run", *huge) == 5
    (captured,) = (tmp_path / "run" / "captures").iterdir()
    assert main(["replay", str(captured)]) == 0


@pytest.mark.slow
def test_vqkd_is_exported_and_shown_as_others_are(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert vqkd(runs / "beit", runs / "photos", run) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "bundle")]) == 0
    assert str(runs / "beit") not in (tmp_path / "bundle" / "config.json").read_text()
    found = [network_digest(load_tokenizer(str(place), COMPUTE)) for place in (run, tmp_path / "bundle")]
    assert found[0] == found[1]
    assert main(["show", str(run), str(runs / "photos"), "--out", str(tmp_path / "page.html"), *CPU[:2]]) == 0
    assert main(["evaluate", str(run), str(runs / "photos"), *CPU[:2]]) == 0


def test_weights_of_another_program_teach(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the run does that they are of, but for pixel statistics. What a file does not tell is said at its import."""
    backbone, photos = load_network(runs / "beit", "cpu").backbone, runs / "photos"
    file = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in backbone.state_dict().items()}, file)
    assert vqkd(file, photos, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert f"use --num-heads: smalti import {file} with it, and give the folder that is written" in error
    wide = replace(backbone.config, embed_dim=64, num_heads=1, mean=(0.5,), std=(0.5,)).build()
    save_file({name: value.contiguous() for name, value in wide.state_dict().items()}, file)
    assert main(["import", str(file), "--out", str(tmp_path / "imported")]) == 0
    for number, teacher in enumerate((file, tmp_path / "imported")):
        assert vqkd(teacher, photos, tmp_path / f"{number}", "--plan.steps", "2") == 0
        assert features(teacher, photos, tmp_path / f"features-{number}") == 0
    assert metrics(tmp_path / "0") == metrics(tmp_path / "1")
    assert weights(tmp_path / "features-0") == weights(tmp_path / "features-1")


def test_the_buffers_of_a_loaded_quantiser_are_those_it_was_saved_with(photos: Path, tmp_path: Path) -> None:
    assert train("vq", photos, tmp_path / "run") == 0
    tokenizer = load_tokenizer(str(tmp_path / "run"), COMPUTE)
    assert isinstance(tokenizer, VectorQuantised)
    fresh = tokenizer.config.build()
    assert not torch.equal(tokenizer.codes, fresh.codes)
    assert float(tokenizer.sizes.sum()) > 0


@pytest.mark.parametrize(
    "tokenizer",
    [
        *(DVAE(16, 4), VQ(16, 4), FSQ((5, 4), 4), KMeansPatches(16, 4), RandomProjection(16, 4)),
        *(KMeansFeatures("runs/beit"), KMeansFeatures("runs/beit", 4, 16, backbone=ViT(depth=4))),
        *(VQKD("runs/beit"), VQKD("runs/beit", 4, 16, backbone=ViT(depth=4), target_dim=8)),
    ],
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
