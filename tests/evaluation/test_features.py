"""Features of every layer from one pass."""

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.data.sources.resident import Resident
from smalti.evaluation.features import POOLINGS, extract, pool
from smalti.models.vit import ViT

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = ViT(img_size=(16, 24), patch_size=4, in_chans=1, embed_dim=8, depth=2, num_heads=2)


def images(num: int = 7) -> Resident:
    pixels = torch.randint(256, (num, 1, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Resident(pixels, torch.zeros(num, dtype=torch.int64))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("grid", [(4, 6), (2, 2), (5, 3)])
def test_pooling_is_what_it_says(pooling: str, grid: tuple[int, int], rng: torch.Generator) -> None:
    h, w = grid
    tokens = torch.randn(2, 1 + h * w, 3, generator=rng)
    result = pool(tokens, pooling, grid)
    maps = tokens[:, 1:].reshape(2, h, w, 3).double().numpy()
    if pooling == "cls":
        expected = tokens[:, 0].double().numpy()
    elif pooling == "mean":
        expected = maps.mean(axis=(1, 2))
    else:
        rows, columns = (slice(0, -(-h // 2)), slice(h // 2, h)), (slice(0, -(-w // 2)), slice(w // 2, w))
        quarters = [[maps[:, r, c].mean(axis=(1, 2)) for c in columns] for r in rows]
        expected = np.stack([np.stack(row, axis=-1) for row in quarters], axis=-2).reshape(2, -1)
    assert np.abs(result.double().numpy() - expected).max() < 1e-6


def test_features_are_the_pooled_outputs_of_every_block_without_the_final_norm() -> None:
    backbone, source = CONFIG.build(), images()
    found = extract(backbone, source, CPU)
    assert set(found) == {(number, pooling) for number in (1, 2) for pooling in POOLINGS}
    with torch.no_grad():
        layers = backbone.encode(backbone.embed(source.images), CONFIG.grid, layers=True).layers
    for (number, pooling), x in found.items():
        torch.testing.assert_close(x, pool(layers[number - 1], pooling, CONFIG.grid))
        assert x.dtype == torch.float32
        assert not x.requires_grad


def test_the_batch_size_does_not_matter() -> None:
    backbone, source = CONFIG.build(), images()
    whole, parts = extract(backbone, source, CPU), extract(backbone, source, CPU, batch_size=3)
    for layer, x in whole.items():
        torch.testing.assert_close(x, parts[layer], rtol=1e-5, atol=1e-6)


def test_stochastic_depth_is_off_even_where_the_network_is_in_training_mode() -> None:
    backbone = CONFIG.build().train()
    one, other = (extract(backbone, images(), CPU) for _ in range(2))
    assert all(torch.equal(one[layer], other[layer]) for layer in one)


def test_features_of_a_bf16_run_are_fp32() -> None:
    found = extract(CONFIG.build(), images(2), Compute(torch.device("cpu"), torch.bfloat16))
    assert {x.dtype for x in found.values()} == {torch.float32}
