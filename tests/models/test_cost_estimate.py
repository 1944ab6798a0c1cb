"""The estimate of memory against what autograd keeps and what is alive, and the count of multiply-adds."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.functional.masking import Blockwise, Random
from smalti.models import vit
from smalti.models.cost_estimate import encoder_multiply_adds, pretraining_multiply_adds, training_memory
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.vit import ViT

SMALL = ViT(img_size=(32, 24), patch_size=4, embed_dim=64, depth=4, num_heads=4, drop_path_rate=0.0)
RELEASED = vit.released(SMALL)
OTHERS = dataclasses.replace(SMALL, positions="block_relative", mlp_ratio=2.5, num_heads=8, in_chans=1)
BATCH = 16


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are computed, but for the parameters, for as long as they are alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def bytes(self) -> int:
        self._seen = {place: held for place, held in self._seen.items() if not held[0].expired()}
        return sum(size for _, size in self._seen.values())

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.bytes()
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self._known:
                storage = value.untyped_storage()
                self._seen.setdefault(storage.data_ptr(), (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, self.bytes())
        return result


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def alive(config: ViT, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that are alive after a forward pass, and at the worst moment of the backward pass."""
    model, images = config.build().train(), torch.rand(BATCH, config.in_chans, *config.img_size)
    with Alive(model) as tracker:
        with autocast(dtype):
            patches = model(images).patches
        held = tracker.bytes()
        tracker.peak = 0
        patches.sum().backward()
    return held, tracker.peak


@pytest.mark.parametrize("config", [SMALL, RELEASED, OTHERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_saves(config: ViT, dtype: torch.dtype) -> None:
    model = config.build().train()
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        saved[value.untyped_storage().data_ptr()] = value
        return value

    images = torch.rand(BATCH, config.in_chans, *config.img_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast(dtype):
        model(images)
    measured = sum(value.untyped_storage().nbytes() for place, value in saved.items() if place not in known)
    assert training_memory(config, BATCH, dtype).activations == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("config", [SMALL, RELEASED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_checkpointing_a_further_block_keeps_its_input_only(config: ViT, dtype: torch.dtype) -> None:
    shallow = dataclasses.replace(config, grad_checkpointing=True)
    deep = dataclasses.replace(shallow, depth=config.depth + 4)
    estimated, measured = (
        held(deep) - held(shallow)
        for held in (lambda c: training_memory(c, BATCH, dtype).activations, lambda c: alive(c, dtype)[0])
    )
    assert estimated == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_worst_moment_of_the_backward_pass_is_activations_and_gradients(checkpointing: bool) -> None:
    config = dataclasses.replace(RELEASED, grad_checkpointing=checkpointing, depth=8)
    estimate = training_memory(config, BATCH, torch.float32)
    assert estimate.activations + estimate.gradients == pytest.approx(alive(config, torch.float32)[1], rel=0.15)


def test_weights_gradients_and_moments_are_in_float32() -> None:
    size = 4 * 85_798_656
    assert training_memory(vit.base(), 1, torch.bfloat16)[:3] == (size, size, 2 * size)


def test_activations_grow_with_the_batch_and_fall_with_checkpointing() -> None:
    base = vit.base()
    once, twice = (training_memory(base, batch, torch.float32).activations for batch in (8, 16))
    assert twice == 2 * once
    assert training_memory(dataclasses.replace(base, grad_checkpointing=True), 8, torch.float32).activations < once / 5


def block_work(queries: int, keys: int, width: int) -> int:
    """Multiply-adds of a block with a feed-forward layer of 4 D: q, k and v, both products of attention, proj, MLP."""
    return (2 * queries + 2 * keys) * width**2 + 2 * queries * keys * width + 8 * queries * width**2


def test_the_work_of_visible_patches_follows_from_the_shapes() -> None:
    num_patches, width, visible, masked = 48, 64, 12, 36
    embedded = num_patches * 3 * 4**2 * width
    encoder = SMALL.depth * block_work(1 + visible, 1 + visible, width)
    for predicted, share in ((36, 1.0), (9, 0.25)):
        decoder = (1 + visible) * width**2 + block_work(predicted, 1 + visible, width) + predicted * width * 100
        work = pretraining_multiply_adds(
            SMALL, Random(ratio=masked / num_patches), CrossAttention(predicted=share), 100
        )
        assert work.forward == embedded + encoder + decoder
        assert work.training == 3 * work.forward - embedded  # pixels have no gradient


def test_the_work_of_features_follows_from_the_shapes() -> None:
    num_patches, width = 48, 64
    blocks = SMALL.depth * block_work(1 + num_patches, 1 + num_patches, width)
    assert encoder_multiply_adds(SMALL) == num_patches * 3 * 4**2 * width + blocks


def test_the_work_of_mask_tokens_follows_from_the_shapes() -> None:
    num_patches, width, masked = 48, 64, 19
    embedded, whole = num_patches * 3 * 4**2 * width, block_work(1 + num_patches, 1 + num_patches, width)
    last = block_work(1 + masked, 1 + num_patches, width)
    last += (num_patches - masked) * width**2  # queries come from the same product as keys and values
    work = pretraining_multiply_adds(SMALL, Blockwise(ratio=0.4), Linear(), 100)
    assert work.forward == embedded + (SMALL.depth - 1) * whole + last + masked * width * 100
