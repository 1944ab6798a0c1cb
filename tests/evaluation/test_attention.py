"""Attention of whole images, and attention rollout."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.contracts import Batch
from smalti.evaluation.attention import attention, block_attentions, rollout
from smalti.functional.masking import mask_index
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from tests import oracles

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = ViT(img_size=(8, 12), patch_size=4, embed_dim=16, depth=3, num_heads=2)


@pytest.fixture
def images(rng: torch.Generator) -> torch.Tensor:
    return torch.rand(2, 3, 8, 12, generator=rng)


@pytest.mark.parametrize("positions", ["absolute", "shared_relative", "block_relative"])
def test_attention_of_whole_images_is_that_of_a_model_in_which_nothing_is_masked(
    positions: Any, images: torch.Tensor
) -> None:
    model = build_mim(replace(CONFIG, positions=positions, init="xavier"), 8).eval()
    none = np.zeros((1, 6), np.bool_)
    index, weight = map(torch.from_numpy, mask_index(none, 0))
    zero = torch.zeros(1, dtype=torch.int64)
    for number, weights in enumerate(block_attentions(model.backbone, images, CPU), start=1):
        assert weights.shape == (2, 2, 7, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7))
        for image, of_image in zip(images, weights, strict=True):
            batch = Batch(image[None], zero, zero, mask=torch.from_numpy(none), mask_index=index, mask_weight=weight)
            one = attention(model, batch, CPU, number)
            torch.testing.assert_close(of_image[:, 1:, 1:], one.patches)
            torch.testing.assert_close(of_image[:, 1:, 0], one.cls)
    blocks: Any = model.backbone.blocks
    assert not blocks[0].attn._forward_pre_hooks


def test_rollout_is_the_product_of_all_blocks(rng: torch.Generator) -> None:
    blocks = [torch.randn(2, 3, 5, 5, generator=rng).mul(2).softmax(-1) for _ in range(4)]
    found = rollout(blocks)
    for number in range(2):
        expected = oracles.rollout([weights[number].numpy() for weights in blocks])
        np.testing.assert_allclose(found[number].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))


def test_rollout_of_positions_that_see_themselves_alone_stays_with_them() -> None:
    eye = torch.eye(4).expand(1, 2, 4, 4)
    torch.testing.assert_close(rollout([eye, eye]), torch.eye(4)[None])
