"""Runs of several processes that are killed and go on: bit for bit on as many, on others only if that is allowed.

A test takes 5 to 20 seconds: pairs of processes train, are killed, and train again.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from smalti.cli import main
from tests.distributed.started import started
from tests.distributed.test_same_steps import TOKENIZERS
from tests.small_runs import PRETRAIN_FLAGS, metrics, newest_checkpoint, pictures, weights

pytestmark = pytest.mark.processes

STEPS = 10
SAVE = ["--plan.save-every", "2"]
MIM = ["pretrain", "tiny", *PRETRAIN_FLAGS, "--target", "pixels", "--ema-decay", "0.9", *SAVE]
KINDS = {
    "pixels": MIM,
    "fsdp": [*MIM, "--parallel", "fsdp"],
    "muon": [*MIM, "--parallel", "fsdp", "--optimiser.matrices", "muon"],
    **{kind: ["train-tokenizer", *TOKENIZERS[kind], *SAVE] for kind in ("dvae", "vq")},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("ranks") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path) -> dict[str, Path]:
    """By kind, what two ranks end in that nothing happens to; filled by `whole_run`."""
    return {}


def whole_run(kind: str, photos: Path, whole: dict[str, Path]) -> Path:
    if kind not in whole:
        run = photos.parent / kind
        with started(photos.parent, [command(kind, photos, run)] * 2) as ranks:
            assert ranks.all_codes() == [0, 0], ranks.text(0)
        whole[kind] = run
    return whole[kind]


def command(kind: str, photos: Path, run: Path) -> list[str]:
    return [*KINDS[kind], "--data", str(photos), "--out", str(run), "--plan.steps", str(STEPS)]


def resume(kind: str, run: Path, *flags: str, world: int = 2) -> tuple[list[int | None], str]:
    with started(run.parent, [[KINDS[kind][0], "--resume", str(run), *flags]] * world) as ranks:
        return ranks.all_codes(), ranks.text(0)


def killed(kind: str, photos: Path, run: Path, rank: int, fault: str) -> Path:
    with started(run.parent, [command(kind, photos, run)] * 2, faults={rank: fault}) as ranks:
        assert ranks.codes(rank) == [-signal.SIGKILL]
        assert ranks.codes(1 - rank, within=60) == [8], ranks.text(1 - rank)
    return run


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("pixels", "vq", "dvae")]


@pytest.mark.parametrize("kind", ["fsdp", "muon", *SLOW_KINDS])
def test_e12_two_ranks_go_on_bit_for_bit(kind: str, photos: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    expected = whole_run(kind, photos, whole)
    run = killed(kind, photos, tmp_path / "run", 1, "kill:7")
    code, said = resume(kind, run)
    assert code == [0, 0], said
    assert "going on from step 6" in said
    assert weights(run) == weights(expected)
    assert metrics(run) == metrics(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_e12_at_ten_places(kind: str, photos: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """Either rank, before any step and while any checkpoint is written; some runs are killed twice."""
    expected, chance = whole_run(kind, photos, whole), np.random.default_rng(12)
    for number in range(10):
        run, step = tmp_path / str(number), int(chance.integers(1, STEPS))
        rank, save = int(chance.integers(2)), bool(chance.integers(2))
        if save:
            rank, step = 0, 2 * (step // 2) + 2
        killed(kind, photos, run, rank, f"kill:save:{step}" if save else f"kill:{step}")
        code, said = resume(kind, run)
        assert code == [0, 0], said
        assert weights(run) == weights(expected), f"rank {rank}, step {step}, saving {save}"
        assert metrics(run) == metrics(expected)


def test_a13_other_numbers_of_processes_are_refused_or_said(
    photos: Path, whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run("pixels", photos, whole), run)
    (run / "result.json").unlink()
    assert main(["pretrain", "--resume", str(run), "--plan.steps", "12"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: the run in {run} cannot go on bit for bit; 2 processes then, 1 now; go on as it began, or use"
        " --allow-inexact"
    )
    code, said = resume("pixels", run, "--plan.steps", "12", world=4)
    assert code == [2] * 4
    assert "2 processes then, 4 now" in said
    code, said = resume("pixels", run, "--plan.steps", "12", "--allow-inexact", world=4)
    assert code == [0] * 4, said
    assert "not bit for bit from here on: 2 processes then, 4 now" in said
    assert json.loads((newest_checkpoint(run) / "state.json").read_text())["conditions"]["world_size"] == 4


def test_a_checkpoint_does_not_know_how_it_was_trained(photos: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """Sharded or not, it holds the same names and shapes, and nearly the same numbers; one goes on as the other."""
    replicated, sharded = (whole_run(kind, photos, whole) for kind in ("pixels", "fsdp"))
    for name in ("model.safetensors", "state.safetensors"):
        ours, theirs = (load_file(newest_checkpoint(run) / name) for run in (replicated, sharded))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert value.shape == theirs[key].shape
            assert (value - theirs[key]).abs().max() < 1e-4, key
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    flags = ["--plan.steps", "14", "--parallel", "ddp", "--allow-inexact"]
    code, said = resume("pixels", run, *flags)
    assert code == [0, 0], said
    assert metrics(run)[-1]["step"] == 14
