"""Data parallelism, in a group of one process; what several learn is in tests/distributed."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh

from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.training import parallel


class Sum(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, batch: Batch, step: torch.Tensor) -> StepOutput:
        value = self.model(batch.image).sum()
        return StepOutput(value, torch.ones(()), {})


@pytest.fixture
def group() -> Iterator[None]:
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_gradients_are_not_kept_twice() -> None:
    """All four are parts of what is sent: 16 bytes a weight are weight, gradient and two moments (docs/scaling.md)."""
    objective = Sum()
    compute = parallel._replicated(objective)
    batch = Batch(torch.ones(1, 4), torch.arange(1), torch.arange(1))
    compute(batch, torch.tensor(0), True).loss_sum.backward()
    gradients = [parameter.grad for parameter in objective.parameters()]
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients if gradient is not None}) == 1


@pytest.mark.usefixtures("group")
def test_weights_are_sharded_over_the_device_they_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mesh torch takes that of the machine's GPUs, also for a run with --device cpu."""
    seen: list[str] = []

    def fully_shard(module: nn.Module, *, mesh: DeviceMesh) -> None:
        seen.append(mesh.device_type)

    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", fully_shard)
    parallel.shard(Sum().model)
    assert seen == ["cpu"]
