"""Fine-tuning on two ranks is that of one process: partners of mixing, losses, looks at validation images, the result.

There are fewer than 32 images to learn from and 16 in a batch, so steps go on into the next epoch.
A test takes 5 seconds: three processes train.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.started import started
from tests.small_runs import FINETUNE_FLAGS, metrics, pictures, result, scenes

pytestmark = pytest.mark.processes

STEPS = 6
CLOSE = 1e-5
MIXED = ["--augment.operations", "2", "--erasing.probability", "0.5", "--plan.accumulate", "2"]
"""On top of the recipe, which mixes; all is drawn for each image."""

BOXES = ["--task", "segmentation", "--task.void", "11"]
FLAGS = {
    "classification": MIXED,
    "segmentation": [*BOXES, "--task.head.width", "8"],
    "lower-block": [*BOXES, "--task.head", "linear", "--task.head.block", "1"],
}


def tuned(world: int, data: Path, out: Path, *flags: str) -> Path:
    command = ["finetune", "tiny", *FINETUNE_FLAGS, *flags, "--data", str(data), "--out", str(out)]
    command += ["--plan.steps", str(STEPS), "--plan.save-every", "3"]
    with started(out.parent, [command] * world) as ranks:
        assert ranks.all_codes() == [0] * world, ranks.text(0)
        assert ranks.unwanted() == ""
    return out


def close(values: dict[str, float]) -> dict[str, Any]:
    return {name: pytest.approx(value, rel=CLOSE, abs=CLOSE) for name, value in values.items()}


@pytest.mark.parametrize("task", FLAGS)
def test_ranks_learn_what_one_learns(task: str, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", per_class=17) if task == "classification" else scenes(tmp_path / "data")
    one, many = (tuned(world, data, tmp_path / str(world), *FLAGS[task]) for world in (1, 2))
    alone, together = metrics(one), metrics(many)
    assert [line["stage"] for line in together].count("finetune") == STEPS
    assert [line["step"] for line in together if line["stage"] == "validation"] == [3, 6]
    for a, b in zip(alone, together, strict=True):
        assert a.pop("stage") == b.pop("stage")
        assert b.pop("grad_norm", 0.0) == pytest.approx(a.pop("grad_norm", 0.0), rel=1e-3)
        assert b == close(a)
    numbers = {name: value for name, value in result(one).items() if isinstance(value, float | int)}
    assert {name: result(many)[name] for name in numbers} == close(numbers)
    if task == "classification":
        assert result(many)["test_confusion"] == result(one)["test_confusion"]
