"""The same global batch on 1, 2 and 4 ranks gives the same losses, and a run of several ranks goes on exactly.

There are 27 images to learn from (E08: no number of ranks divides them): batches are parts of one endless stream.
A test takes 5 to 15 seconds: three to five processes train.
"""

from pathlib import Path

import pytest

from smalti.runs.pretraining_checks import ONLINE
from tests.distributed.started import started
from tests.small_runs import (
    CPU,
    PRETRAIN_FLAGS,
    TOKENIZER_FLAGS,
    metrics,
    pictures,
    pretrain,
    train_tokenizer,
)

pytestmark = pytest.mark.processes

STEPS = 50
CLOSE = 1e-5
GENTLE = ["--optimiser.lr", "1e-4"]
"""Of a tokenizer: with the rate of the recipe a change of one bit, also in one process, is a thousandth in 20 steps."""
NO_VOCABULARY = TOKENIZER_FLAGS.index("--tokenizer.vocab-size")
FSQ_FLAGS = TOKENIZER_FLAGS[:NO_VOCABULARY] + TOKENIZER_FLAGS[NO_VOCABULARY + 2 :]
TOKENIZERS = {
    "dvae": ["tiny", *TOKENIZER_FLAGS, *GENTLE, "--relaxation.dead-after", "2", "--relaxation.spread", "1.0"],
    "vq": ["vq", *TOKENIZER_FLAGS, *GENTLE, "--tokenizer.dead-after", "3"],
    "fsq": ["fsq", *FSQ_FLAGS, "--optimiser.lr", "1e-5"],
}
VQKD = [*CPU, *GENTLE, "--data.held-out", "0.2", "--plan.batch-size", "16", "--plan.log-every", "1", "--plan.repeat"]
VQKD += ["--tokenizer.dead-after", "3", "--tokenizer.vocab-size", "16", "--tokenizer.code-dim", "4"]
TARGETS = {
    "tokens": [],
    "accumulated": ["--plan.accumulate", "2", "--masking", "random", "--equal-images"],
    "visible": ["--decoder", "cross-attention", "--decoder.predicted", "0.5", "--masks-per-image", "2"],
    "visible-fsdp": ["--decoder", "cross-attention", "--decoder.mix-layers", "--parallel", "fsdp"],
    "fsdp": ["--parallel", "fsdp", "--ema-decay", "0.9"],
    "muon": ["--optimiser.matrices", "muon", "--decoder", "cross-attention"],
    "muon-fsdp": ["--optimiser.matrices", "muon", "--parallel", "fsdp", "--ema-decay", "0.9"],
    "aggregation": ["--patch-aggregation.depth", "1"],
    "aggregation-fsdp": ["--patch-aggregation.depth", "1", "--parallel", "fsdp", "--decoder", "cross-attention"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("ranks") / "photos", per_class=17)


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    assert train_tokenizer(photos, photos.parent / "tokenizer", 2) == 0
    return photos.parent / "tokenizer"


@pytest.fixture(scope="module")
def teacher(photos: Path, tokenizer: Path) -> Path:
    assert pretrain(photos, tokenizer, photos.parent / "teacher", 2, "--accept-tokenizer") == 0
    return photos.parent / "teacher"


def trained(world: int, command: list[str], photos: Path, out: Path, steps: int = STEPS) -> Path:
    given = [*command, "--data", str(photos), "--out", str(out), "--plan.steps", str(steps)]
    with started(out.parent, [given] * world) as ranks:
        assert ranks.all_codes() == [0] * world, ranks.text(0)
        assert ranks.unwanted() == ""
    return out


def assert_same_losses(one: Path, many: Path) -> None:
    alone, together = metrics(one), metrics(many)
    assert len(alone) == len(together) == STEPS
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys()
        close = {name: pytest.approx(a[name], rel=CLOSE, abs=CLOSE) for name in a if name not in ("stage", "grad_norm")}
        assert {name: b[name] for name in close} == close
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


QUICK = [("dvae", 2), ("vq", 4), ("accumulated", 2), ("aggregation-fsdp", 2), ("muon-fsdp", 2)]
REST = [(kind, world) for kind in [*TOKENIZERS, *TARGETS] for world in (2, 4) if (kind, world) not in QUICK]


@pytest.mark.parametrize(("kind", "world"), QUICK + [pytest.param(*one, marks=pytest.mark.slow) for one in REST])
def test_e08_ranks_learn_what_one_learns(kind: str, world: int, photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    command = ["train-tokenizer", *TOKENIZERS[kind]] if kind in TOKENIZERS else mim(kind, tokenizer)
    one = trained(1, command, photos, tmp_path / "one")
    assert_same_losses(one, trained(world, command, photos, tmp_path / "many"))


def test_ranks_learn_the_same_of_a_teacher(photos: Path, teacher: Path, tmp_path: Path) -> None:
    command = ["train-tokenizer", "vqkd", *VQKD, "--tokenizer.teacher", str(teacher)]
    assert_same_losses(*(trained(world, command, photos, tmp_path / f"{world}") for world in (1, 2)))


@pytest.mark.slow
def test_rounds_are_the_same_for_two_ranks(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    """But for a token whose two nearest centres are equally far, and rounding."""
    command = [*mim("tokens", tokenizer), "--rounds", "2"]
    one, many = (metrics(trained(world, command, photos, tmp_path / f"{world}", 8)) for world in (1, 2))
    assert [line["loss"] for line in many] == pytest.approx([line["loss"] for line in one], rel=0.02)
    assert len(one) == 4


def test_features_of_a_network_in_parts_are_measured_while_it_learns(
    photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    command = [*mim("fsdp", tokenizer), "--online.data", str(photos), "--online.every", "2"]
    lines = metrics(trained(2, command, photos, tmp_path / "many", steps=2))
    assert [0 < line[ONLINE] <= 1 for line in lines if ONLINE in line] == [True]


def mim(kind: str, tokenizer: Path) -> list[str]:
    return ["pretrain", "tiny", *PRETRAIN_FLAGS, *TARGETS[kind], "--tokenizer", str(tokenizer), "--accept-tokenizer"]
