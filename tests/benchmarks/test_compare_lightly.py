"""The comparison with lightly: their networks train, their encoder is measured as our backbone, cells run once."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.small_runs import CPU, pictures

from smalti.cli import main
from smalti.core.compute import choose_compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import TrainingData

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "cifar10" / "peers"


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("lightly")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("compare_lightly")


@pytest.fixture
def methods(comparison: ModuleType) -> ModuleType:
    return import_module("lightly_methods")


def test_our_backbone_computes_what_their_encoder_does(
    comparison: ModuleType, methods: ModuleType, tmp_path: Path
) -> None:
    model = methods.MAE().eval()
    comparison.save_file(model.backbone.vit.state_dict(), tmp_path / "encoder.safetensors")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value)[:, None, None] for value in (methods.MEAN, methods.STD))
    with torch.no_grad():
        backbone = comparison.read_encoder(tmp_path / "encoder.safetensors")
        ours = backbone.encode(backbone.embed(images), layers=True)
        last, layers = model.backbone.forward_intermediates((images / 255 - mean) / std)
    torch.testing.assert_close(torch.cat([ours.cls[:, None], ours.patches], dim=1), last, atol=1e-5, rtol=0)
    assert len(layers) == len(ours.layers) == 6
    for one, other in zip(ours.layers, layers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "num_masked_patches"), [("mae", 48), ("simmim", 40)])
def test_what_is_hidden_cannot_be_seen(methods: ModuleType, method: str, num_masked_patches: int) -> None:
    """The guess at masked patches does not change with them, and does with the others."""
    model = methods.METHODS[method].build().eval()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def guess(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            return model(pixels)

    predicted, masked = guess(image)
    assert predicted.shape == (1, num_masked_patches, 48)
    mask = torch.zeros(64, dtype=torch.bool)
    mask[masked[0] - 1] = True
    pixels = mask.view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    torch.testing.assert_close(guess(torch.where(pixels, 1 - image, image))[0], predicted)
    assert not torch.allclose(guess(torch.where(pixels, image, 1 - image))[0], predicted)


def test_equal_time_is_counted_in_steps_of_ours(comparison: ModuleType) -> None:
    seconds = {"ours": 0.3, "mae": 0.2, "simmim": 0.6}
    assert comparison.steps_of("mae-equal-images", 1280, None, {}) == 10
    assert comparison.steps_of("mae-equal-time", 1280, None, seconds) == 15
    assert comparison.steps_of("simmim-our-settings-equal-time", 1280, None, seconds) == 5
    assert comparison.steps_of("simmim-equal-time-both-stages", 1280, 2.0, seconds) == 10
    assert comparison.steps_of("mae-equal-time-both-stages", 1280, None, seconds) is None
    assert comparison.steps_of("mae-equal-time", 1280, None, {}) is None


@pytest.mark.parametrize("method", ["mae", "mae-muon", "simmim-our-settings"])
def test_a_cell_that_was_cut_off_goes_on_bit_by_bit(methods: ModuleType, method: str, tmp_path: Path) -> None:
    pixels = torch.arange(8 * 3 * 32 * 32).view(8, 3, 32, 32).to(torch.uint8)
    dataset = InMemoryDataset(pixels, torch.zeros(8, dtype=torch.int64))
    images = TrainingData(dataset, dataset)
    compute = choose_compute("cpu", "fp32")
    chosen = replace(methods.METHODS[method.removesuffix("-muon")], muon=method.endswith("-muon"))
    whole, first, second = (methods.Training(chosen, images, 3, compute, False) for _ in range(3))
    for _ in range(3):
        whole.step()
    first.step()
    first.save(tmp_path)
    second.load(tmp_path)
    assert (second.done, second.seconds) == (1, first.seconds)
    for _ in range(2):
        second.step()
    assert second.losses == whole.losses
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_the_learning_rate_is_theirs(methods: ModuleType) -> None:
    """1.5e-4 at a batch of 256, reached in the last of 5 % of the steps; then a cosine."""
    method = methods.METHODS["mae"]
    rates = [methods.lr_of(method, step, 1000) for step in (0, 24, 49, 524, 999)]
    assert rates == pytest.approx([1.5e-6, 3.75e-5, 7.5e-5, 3.75e-5, 7.5e-8], rel=0.01)


@pytest.fixture
def call(tmp_path: Path) -> list[str]:
    """Two steps of the comparison on a few pictures."""
    pytest.importorskip("lightly")
    for part, count in (("train", 80), ("test", 4)):
        pictures(tmp_path / "images" / part, per_class=count)
    command = [sys.executable, str(BENCHMARKS / "compare_lightly.py"), "--cifar10", str(tmp_path / "images")]
    return [
        *command,
        "--images",
        "256",
        "--no-compile",
        "--finetune-steps",
        "2",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
    ]


def test_a_cell_is_run_once_and_its_encoder_stays(call: list[str], tmp_path: Path) -> None:
    call += ["--cell", "simmim-equal-images"]
    printed = [subprocess.run(call, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert "step 2 of 2" in printed[0]
    assert "step" not in printed[1]
    assert printed[1] == "\n".join(printed[0].splitlines()[-3:]) + "\n"
    target = tmp_path / "out" / "simmim-equal-images.json"
    cell = json.loads(target.read_text())
    assert (cell["images"], cell["lr"], cell["network"]) == (256, 5e-5, "SimMIM")
    assert 0 <= cell["frozen"]["linear"] <= 1
    tuned = cell["finetune-10pct-0"]
    assert (tuned["steps"], tuned["test_images"]) == (2, 8)
    target.unlink()
    again = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert again == printed[1], "its encoder is measured again, without training"
    assert json.loads(target.read_text())["processor_seconds"] == cell["processor_seconds"]


def test_a_cell_of_equal_time_has_the_steps_that_fit(call: list[str], tmp_path: Path) -> None:
    tokenizer = ["--data", str(tmp_path / "images" / "train"), "--out", str(tmp_path / "tokenizer")]
    assert main(["train-tokenizer", "kmeans", *CPU, "--tokenizer.vocab-size", "32", *tokenizer]) == 0
    call += ["--tokenizer", str(tmp_path / "tokenizer"), "--rounds", "1", "--seconds", "10", "--tokenizer-seconds", "5"]
    subprocess.run([*call, "--cell", "mae-equal-time-both-stages"], capture_output=True, text=True, check=True)
    seconds = json.loads((tmp_path / "out" / "step-seconds.json").read_text())
    assert set(seconds) == {"ours", "mae", "simmim"}
    cell = json.loads((tmp_path / "out" / "mae-equal-time-both-stages.json").read_text())
    assert cell["steps"] == max(1, round(3 * seconds["ours"] / seconds["mae"]))


@pytest.mark.docs
def test_the_table_is_that_of_the_files(comparison: ModuleType) -> None:
    page = (RESULTS / "README.md").read_text()
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0].strip()
    assert shown == comparison.table(comparison.COLUMNS, comparison.finished(RESULTS))
