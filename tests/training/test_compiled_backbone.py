"""Compiled blocks of every variant. In a process of its own: checked annotations do not compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from smalti.models import vit
from smalti.models.vit import ViT
from smalti.core.compute import compile_blocks

paper = ViT(img_size=(16, 24), patch_size=4, embed_dim=32, depth=3, num_heads=4, drop_path_rate=0.2)
released = vit.released(paper)
variants = {
    "paper": paper,
    "released": released,
    "block_relative": replace(paper, positions="block_relative"),
    "checkpointed": replace(released, grad_checkpointing=True),
}
config = variants[sys.argv[1]]
torch.set_num_threads(1)
plain, compiled = (config.build(seed=3).train() for _ in range(2))
compile_blocks(compiled.blocks)
images, key = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0)), torch.arange(4)
for model in (plain, compiled):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.add_(noise, alpha=0.5 if "table" in name else 0.1)
    model.features = model.encode(model.embed(images), key=key).patches
    model.features.square().sum().backward()
torch.testing.assert_close(compiled.features, plain.features, rtol=0, atol=1e-5)
gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (compiled, plain)]
torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
assert counters["stats"]["unique_graphs"] == 1, "one compilation serves all blocks"
assert not counters["graph_break"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "released", "block_relative", "checkpointed"])
def test_compiled_blocks_give_the_features_and_gradients_of_plain_ones(variant: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, variant], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
