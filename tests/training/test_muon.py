"""Muon: what it does to a matrix, the same as torch's in a whole run of steps, and a run that goes on exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.errors import UsageError
from smalti.models.decoder import CrossAttention
from smalti.models.mim import build_mim
from smalti.models.patch_aggregation import PatchAggregation
from smalti.models.vit import ViT
from smalti.training.checkpoint import read_checkpoint
from smalti.training.muon import MuonAdamW, orthogonalised
from smalti.training.optim import Optimiser, is_matrix_of_block
from smalti.training.trainer import Trainer
from smalti.training.training_plan import Plan
from tests.training.test_loop import batches

CPU = Compute(torch.device("cpu"), torch.float32)
MODEL = build_mim(ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=2, num_heads=2), vocab_size=5)
SHAPES = [(8, 8), (24, 8), (8, 24), (8, 24), (24, 8), (1, 5)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_singular_values(matrix: Tensor) -> Tensor:
    """The definition: the polynomial of the iteration, five times, of each singular value."""
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return torch.from_numpy(u * s @ vt)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.floats(1e-3, 1e6))
def test_singular_values_go_through_the_polynomial_and_vectors_stay(
    count: int, rows: int, columns: int, seed: int, scale: float
) -> None:
    matrices = scale * drawn(count, rows, columns, seed=seed)
    for matrix, found in zip(matrices, orthogonalised(matrices), strict=True):
        torch.testing.assert_close(found.double(), by_singular_values(matrix), rtol=1e-3, atol=1e-3)


def test_singular_values_come_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalised(drawn(4, 32, 64)))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalised(torch.zeros(2, 3, 4)).any()


def layers() -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(drawn(*shape, seed=i)) for i, shape in enumerate(SHAPES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ten_steps_are_those_of_torch(dtype: torch.dtype) -> None:
    """Of torch's, products are always in bfloat16."""
    ours, theirs = layers(), layers()
    group = {"params": list(ours), "lr": 0.02, "weight_decay": 0.1}
    own = MuonAdamW([group], torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
    other = torch.optim.Muon(list(theirs), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(10):
        for number, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = drawn(*one.shape, seed=100 * step + number)
            two.grad = one.grad.clone()
        with Compute(torch.device("cpu"), dtype).autocast():
            own.step()
        other.step()
    for one, two, start in zip(ours, theirs, layers(), strict=True):
        moved = (two - start).detach().norm()
        assert float((one - two).detach().norm() / moved) < 0.02


def test_an_update_is_about_as_large_as_one_of_adamw() -> None:
    for shape in ((64, 64), (256, 64), (64, 256)):
        weight = nn.Parameter(torch.zeros(shape))
        own = MuonAdamW([{"params": [weight], "lr": 0.5, "weight_decay": 0.0}], torch.optim.AdamW([nn.Parameter()]))
        weight.grad = drawn(*shape)
        own.step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.15)


def test_it_has_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    made = Optimiser(matrices="muon", weight_decay=0.3).build(MODEL)
    assert isinstance(made, MuonAdamW)
    by_muon = {id(p) for group in made.matrices for p in group["params"]}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"backbone.blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}
    assert {name for name, p in MODEL.named_parameters() if id(p) in by_muon} == expected
    assert {name for name, p in MODEL.named_parameters() if is_matrix_of_block(name, p)} == expected
    everything = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in MODEL.parameters())
    assert {group["weight_decay"] for group in made.matrices} == {0.3}


def test_blocks_of_decoder_and_aggregation_have_such_matrices_too() -> None:
    model = build_mim(
        ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=2, num_heads=2),
        vocab_size=5,
        decoder=CrossAttention(depth=1),
        aggregation=PatchAggregation(depth=1),
    )
    found = {name for name, p in model.named_parameters() if is_matrix_of_block(name, p)}
    encoder, decoder = ("attn.qkv", "attn.proj"), ("attn.q", "attn.kv", "attn.proj")
    assert {name for name in found if not name.startswith("backbone.")} == {
        f"{part}.blocks.0.{layer}.weight"
        for part, layers in (("decoder", decoder), ("aggregation", encoder))
        for layer in (*layers, "mlp.fc1", "mlp.fc2")
    }
    assert len(found) == 5 + 4 + 2 * 4


def test_it_keeps_one_average_of_a_matrix() -> None:
    sizes = {name: p.numel() * 4 for name, p in MODEL.named_parameters()}
    matrices = sum(size for name, size in sizes.items() if is_matrix_of_block(name, MODEL.get_parameter(name)))
    assert Optimiser().moments_bytes(MODEL) == 2 * sum(sizes.values())
    assert Optimiser(matrices="muon").moments_bytes(MODEL) == 2 * sum(sizes.values()) - matrices


def test_tables_of_positions_are_not_matrices_of_blocks() -> None:
    table = nn.Parameter(torch.zeros(9, 2))
    assert not is_matrix_of_block("backbone.blocks.0.attn.relative_position_bias_table", table)


def test_layer_decay_reaches_it() -> None:
    made = Optimiser(matrices="muon", layer_decay=0.5).build(MODEL)
    assert isinstance(made, MuonAdamW)
    assert sorted(group["lr_scale"] for group in made.matrices) == [0.25, 0.5]


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no weight matrix of a Transformer block learns.*matrices adamw"):
        Optimiser(matrices="muon").build(nn.Linear(2, 2))


class Halves(Objective):
    """Predict one half of an image from the other with a block that is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential()
        self.model.add_module("blocks", nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)))
        for number, parameter in enumerate(self.model.parameters()):
            parameter.data = 0.1 * drawn(*parameter.shape, seed=number)

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        left, right = batch.image[:, 0].flatten(1).chunk(2, 1)
        errors = (self.model(left) - right).square().sum(1)
        return StepOutput(errors.sum(), torch.tensor(float(len(errors))), {})


MUON = Optimiser(lr=0.01, warmup_ratio=0.2, matrices="muon")


def trained(made: Trainer, until: int = 8) -> Trainer:
    for step in range(made.step, until):
        made.train_step(batches()(step), CPU)
    return made


def trainer(optimiser: Optimiser = MUON) -> Trainer:
    return Trainer(Halves(), optimiser, Plan(steps=8, batch_size=6), 0.9)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, left = trained(trainer()), trained(trainer(), 3)
    left.save(tmp_path)
    resumed = trainer()
    resumed.load_state(read_checkpoint(tmp_path), str(tmp_path))
    trained(resumed)
    for one, two in zip(whole.state().items(), resumed.state().items(), strict=True):
        assert one[0] == two[0]
        assert torch.equal(one[1], two[1]), one[0]
    assert {name.split(".")[0] for name in whole.state()} == {"raw", "momentum", "step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(("before", "after"), [("muon", "adamw"), ("adamw", "muon")])
def test_a_run_that_goes_on_with_the_other_one_starts_its_moments_anew(before: str, after: str, tmp_path: Path) -> None:
    one, two = (MUON if name == "muon" else Optimiser(lr=0.01) for name in (before, after))
    trained(trainer(one), 3).save(tmp_path)
    resumed = trainer(two)
    resumed.load_state(read_checkpoint(tmp_path), str(tmp_path))
    assert len(resumed.optimizer.state) == 2  # biases, which AdamW has in both
    trained(resumed)
    assert all(torch.isfinite(p).all() for p in resumed.objective.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_products_have_the_number_format_of_the_run(dtype: torch.dtype) -> None:
    made, seen = trainer(), list[bool]()
    made.optimizer.register_step_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    made.train_step(batches()(0), Compute(torch.device("cpu"), dtype))
    assert seen == [dtype == torch.bfloat16]
    with Compute(torch.device("cpu"), dtype).autocast():
        assert orthogonalised(drawn(2, 8, 8)).dtype == dtype
    assert all(p.dtype == torch.float32 for p in made.objective.model.parameters())


def test_a_step_in_parts_is_that_of_the_whole_batch() -> None:
    whole, parts = (
        Trainer(Halves(), MUON, Plan(steps=8, batch_size=6, accumulate=accumulate), 0.9) for accumulate in (1, 3)
    )
    for made in (whole, parts):
        trained(made)
    for one, two in zip(whole.objective.model.parameters(), parts.objective.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_matrix_that_is_frozen_at_first_stays_and_has_no_momentum() -> None:
    objective = Halves()
    frozen, *_ = (p for p in objective.model.parameters() if p.ndim == 2)
    before = frozen.detach().clone()
    made = Trainer(objective, MUON, Plan(steps=8, batch_size=6), frozen=(frozen,), frozen_steps=3)
    trained(made, 3)
    assert torch.equal(frozen, before)
    assert frozen not in made.optimizer.state
    trained(made, 4)
    assert not torch.equal(frozen, before)


def test_a_run_that_rolls_back_has_the_momentum_of_the_checkpoint(tmp_path: Path) -> None:
    made = trained(trainer(), 3)
    made.save(tmp_path)
    saved = {name: value.clone() for name, value in made.state().items() if name.startswith("momentum")}
    trained(made, 5)
    made.roll_back(read_checkpoint(tmp_path), str(tmp_path))
    assert made.step == 5
    assert len(saved) == 2
    assert all(torch.equal(made.state()[name], value) for name, value in saved.items())


def test_its_state_can_be_loaded_as_torch_does() -> None:
    whole, left = trained(trainer()), trained(trainer(), 3)
    resumed = trainer()
    resumed.objective.model.load_state_dict(left.objective.model.state_dict())
    resumed.optimizer.load_state_dict(left.optimizer.state_dict())
    resumed.step = 3
    trained(resumed)
    for one, two in zip(whole.objective.model.parameters(), resumed.objective.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_a_checkpoint_is_as_large_as_was_said(ema_decay: float | None, tmp_path: Path) -> None:
    made = trained(Trainer(Halves(), MUON, Plan(steps=8, batch_size=6), ema_decay), 1)
    made.save(tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert made.checkpoint_bytes == pytest.approx(written, rel=0.2)
    assert made.checkpoint_bytes < trainer(Optimiser()).checkpoint_bytes
