"""Features of every layer from one pass."""

import errno
import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.compute import Compute
from smalti.core.errors import OutputError
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.features import POOLINGS, Pooling, extract, layer_features, patch_features, pool
from smalti.models.vit import ViT

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = ViT(img_size=(16, 24), patch_size=4, in_chans=1, embed_dim=8, depth=2, num_heads=2)


def images(num: int = 7) -> InMemoryDataset:
    pixels = torch.randint(256, (num, 1, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return InMemoryDataset(pixels, torch.zeros(num, dtype=torch.int64))


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
    elif pooling == "both":
        expected = np.concatenate([tokens[:, 0].double().numpy(), maps.mean(axis=(1, 2))], axis=1)
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
        layers = backbone.encode(backbone.embed(source.images), layers=True).layers
    for (number, pooling), x in found.items():
        assert torch.equal(x, pool(layers[number - 1], pooling, CONFIG.grid))
        assert x.dtype == torch.float32
        assert not x.requires_grad


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [1, 2])
def test_features_of_one_layer_are_those_of_that_layer(layer: int, pooling: Pooling) -> None:
    backbone, source = CONFIG.build(), images()
    found = layer_features(backbone, source.images, CPU, layer, pooling)
    torch.testing.assert_close(found, extract(backbone, source, CPU)[layer, pooling])
    patches = patch_features(backbone, source.images, CPU, layer)
    torch.testing.assert_close(patches.mean(1), extract(backbone, source, CPU)[layer, "mean"])


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


def test_both_poolings_are_kept_once() -> None:
    found = extract(CONFIG.build(), images(), CPU, poolings=("both", "cls"))
    assert set(found.kept) == {(1, "cls"), (1, "mean"), (2, "cls"), (2, "mean")}
    assert list(found) == [(1, "both"), (1, "cls"), (2, "both"), (2, "cls")]
    assert torch.equal(found[2, "both"][:, :8], found[2, "cls"])


def test_what_was_not_asked_for_is_not_there() -> None:
    found = extract(CONFIG.build(), images(), CPU, poolings=["both"])
    with pytest.raises(KeyError):
        found[1, "mean"]


def test_half_precision_halves_what_is_kept_and_gives_the_same_to_three_digits() -> None:
    whole, half = (extract(CONFIG.build(), images(), CPU, dtype=dtype) for dtype in (torch.float32, torch.float16))
    assert {x.dtype for x in half.kept.values()} == {torch.float16}
    for layer, x in whole.items():
        assert half[layer].dtype == torch.float32
        torch.testing.assert_close(half[layer], x, rtol=1e-3, atol=1e-6)


def test_a_value_beyond_half_precision_ends_at_its_largest() -> None:
    backbone = CONFIG.build()
    with torch.no_grad():
        block: Any = backbone.blocks[1]
        block.mlp.fc2.bias[0] = 1e6
    assert float(extract(backbone, images(), CPU, dtype=torch.float16)[2, "mean"].max()) == 65504


def test_features_that_do_not_fit_into_memory_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, source = CONFIG.build(), images()
    in_memory = extract(backbone, source, CPU, dtype=torch.float16)
    monkeypatch.setattr("smalti.evaluation.features.usable_memory", lambda: 64)
    monkeypatch.setattr("smalti.evaluation.features._WRITE", 100)
    in_file = extract(backbone, source, CPU, dtype=torch.float16)
    assert all(torch.equal(in_file[layer], x) for layer, x in in_memory.items())


def test_a_full_disk_is_named_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("smalti.evaluation.features.usable_memory", lambda: 64)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError) as refusal:
        extract(CONFIG.build(), images(), CPU)
    assert str(refusal.value) == (
        f"no room for features in {tempfile.gettempdir()}; No space left on device;"
        " set TMPDIR to a larger disk, or give fewer images"
    )


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_each_rank_computes_its_batches_and_gets_the_others(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images in batches of two: four batches, of which a fifth rank has none."""
    backbone, whole = CONFIG.build(), images(7)
    expected = extract(backbone, whole, CPU, 2)
    order = [(layer, start) for layer in expected.kept for start in range(0, 7, 2)]
    monkeypatch.setattr("smalti.evaluation.features.world_size", lambda: ranks)
    for own in range(ranks):
        sent: list[int] = []

        def broadcast(source: int, rows: torch.Tensor, own: int = own, sent: list[int] = sent) -> None:
            layer, start = order[len(sent)]
            sent.append(source)
            true = expected.kept[layer][start : start + 2]
            if source == own:
                torch.testing.assert_close(rows, true, rtol=0, atol=0)
            rows.copy_(true)

        monkeypatch.setattr("smalti.evaluation.features.rank", lambda own=own: own)
        monkeypatch.setattr("smalti.evaluation.features.broadcast_from", broadcast)
        found = extract(backbone, whole, CPU, 2, shared=True)
        assert sent == [number % ranks for number in range(4)] * len(expected.kept)
        assert all(torch.equal(value, expected.kept[layer]) for layer, value in found.kept.items())
