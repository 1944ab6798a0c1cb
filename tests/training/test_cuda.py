"""What is different on a GPU, tried where there is one."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.models.layers import attend
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.objectives import MaskedImageModeling
from smalti.training.optim import Optimiser
from smalti.training.trainer import mean_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
CUDA = torch.device("cuda")


def batch(rng: torch.Generator) -> Batch:
    images = torch.randint(256, (4, 3, 16, 16), generator=rng, dtype=torch.uint8)
    index = torch.arange(6).repeat(4, 1)
    mask = torch.zeros(4, 16, dtype=torch.bool).scatter_(1, index, True)
    ids = torch.randint(8, (4, 16), generator=rng)
    number = torch.arange(4)
    return Batch(images, number, number, ids=ids, mask=mask, mask_index=index, mask_weight=torch.ones(4, 6))


def test_the_fused_kernel_equals_the_explicit_form(rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 2, 6, 8, generator=rng)
    torch.testing.assert_close(attend(q.cuda(), k.cuda(), v.cuda()).cpu(), attend(q, k, v), atol=2e-3, rtol=2e-3)


def test_a_batch_arrives_whole(rng: torch.Generator) -> None:
    made = replace(batch(rng), label=torch.arange(0))
    arrived = made.to(CUDA)
    torch.cuda.synchronize()
    for name, value in vars(made).items():
        there = getattr(arrived, name)
        assert (value is None) == (there is None), name
        assert value is None or (there.is_cuda and torch.equal(there.cpu(), value)), name


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("positions", ["absolute", "shared_relative", "block_relative"])
def test_the_loss_is_that_of_the_cpu(rng: torch.Generator, positions: Any, dtype: torch.dtype, close: float) -> None:
    sizes: dict[str, Any] = {"img_size": (16, 16), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    config = ViT(**sizes, drop_path_rate=0.0, positions=positions)
    objective, made = MaskedImageModeling(build_mim(config, 8)), batch(rng)
    expected = mean_metrics(objective(made, torch.tensor(0)))["loss"]
    with Compute(CUDA, dtype).autocast():
        output = objective.cuda()(made.to(CUDA), torch.tensor(0))
    output.loss_sum.backward()
    assert mean_metrics(output)["loss"] == pytest.approx(expected, abs=close)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


def test_updates_of_muon_are_those_of_the_cpu(rng: torch.Generator) -> None:
    sizes: dict[str, Any] = {"img_size": (16, 16), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    here, there = build_mim(ViT(**sizes), 8), build_mim(ViT(**sizes), 8).cuda()
    there.load_state_dict(here.state_dict())
    for one, two in zip(here.parameters(), there.parameters(), strict=True):
        one.grad = torch.randn(one.shape, generator=rng)
        two.grad = one.grad.cuda()
    for model in (here, there):
        Optimiser(lr=1e-2, matrices="muon").build(model).step()
    for one, two in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(two.cpu(), one, atol=1e-3, rtol=1e-2)
