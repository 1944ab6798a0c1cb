"""Every tensor of a step is on the device of the step: shown without one, by tensors of CUDA that hold no values.

torch computes their shapes, formats and devices only, and refuses an operation on tensors of two devices, as ever. None
of them is float64, which a GPU of Apple's does not have.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Objective
from smalti.core.rng import Keys
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.loader import InMemoryViewSource, Sampler
from smalti.data.tokens import encode, scored
from smalti.data.transforms.batch_transforms import Erasing, Mixing, TransformedBatches
from smalti.data.transforms.randaugment import OPERATIONS
from smalti.data.transforms.views import ColorJitter, RandomResizedCrop, TwoViews
from smalti.models.classifier import build_classifier
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.mim import build_mim
from smalti.models.segmenter import Linear as LinearHead
from smalti.models.segmenter import MultiLevel, build_segmenter
from smalti.models.vit import ViT
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.quantised import FSQ, VQ
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from smalti.tokenizers.vqkd import VQKD
from smalti.training.objectives import (
    Classify,
    ClassifySeveral,
    DiscreteVAEObjective,
    FeatureReconstruction,
    MaskedImageModeling,
    QuantisedObjective,
    Relaxation,
    Segment,
)
from smalti.training.targets import Pixels, SoftTokens, Tokens

CUDA = torch.device("cuda:0")
VOCAB, GRID = 8, (4, 4)
SIZES: dict[str, Any] = {"img_size": (32, 32), "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TOKENIZERS: list[Any] = [
    DVAE(vocab_size=VOCAB, stride=8, width=8),
    VQ(vocab_size=VOCAB, stride=8, width=8),
    FSQ(levels=(4, 3), stride=8, width=8),
    KMeansPatches(vocab_size=VOCAB, stride=8),
    RandomProjection(vocab_size=VOCAB, stride=8),
    DallE(vocab_size=VOCAB, width=8),
]


@pytest.fixture(autouse=True)
def _no_gpu_is_no_news() -> Iterator[None]:
    """Autocast says that there is no GPU, and is off."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available")
        yield


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Tensors that would have been copied to pinned memory, which only a GPU has."""
    found: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: found.append(tensor) or tensor)
    return found


class NoDoubles(TorchDispatchMode):
    """Refuses float64 on a device, and if asked copies from and to it that the program waits for."""

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.waits and func is torch.ops.aten._to_copy.default and result.device != args[0].device:
            assert (kwargs or {}).get("non_blocking"), f"waits for a copy from {args[0].device} to {result.device}"
        for value in tree_leaves(result):
            doubles = isinstance(value, Tensor) and value.dtype == torch.float64 and value.device.type != "cpu"
            assert not doubles, f"{func} makes float64 on {value.device}"
        return result


@contextmanager
def pretended(waits: bool = True) -> Iterator[None]:
    """Tensors are on the device that they say, hold no values there, and are not float64; nothing `waits` for it."""
    with FakeTensorMode(allow_non_fake_inputs=True), NoDoubles(waits):
        yield


def on_cuda(module: nn.Module) -> None:
    """Move weights and buffers, as `.to` does with real ones; called under a FakeTensorMode."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(empty_like(value), requires_grad=value.requires_grad)
        for name, kept in part._buffers.items():
            if kept is not None:
                part._buffers[name] = empty_like(kept)


def empty_like(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=CUDA)


def made() -> Batch:
    return Batch(
        image=torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
        index=torch.arange(4),
        key=torch.arange(4),
        ids=torch.zeros(4, 16, dtype=torch.int64),
        mask=torch.zeros(4, 16, dtype=torch.bool),
        mask_index=torch.zeros(4, 12, dtype=torch.int64),
        mask_weight=torch.ones(4, 12),
        scores=torch.zeros(4, 12, VOCAB),
        label=torch.zeros(4, dtype=torch.int64),
        label_map=torch.zeros(4, 32, 32, dtype=torch.uint8),
    )


def batch() -> Batch:
    return made().to(CUDA)


def test_what_is_copied_to_a_gpu_is_pinned_so_that_the_program_does_not_wait(pinned: list[Tensor]) -> None:
    with FakeTensorMode():
        here = made()
        there = here.to(CUDA)
        given = [value for value in vars(here).values() if value is not None]
        assert all(one is other for one, other in zip(pinned, given, strict=True))
        assert {value.device for value in vars(there).values() if value is not None} == {CUDA}
        there.to(CUDA)
        here.to(torch.device("cpu"))
    assert len(pinned) == len(given)


def masked(target: Tokens | SoftTokens | Pixels, decoder: Linear | CrossAttention, **backbone: Any) -> Objective:
    outputs = 3 * 8 * 8 if isinstance(target, Pixels) else VOCAB
    model = build_mim(ViT(**SIZES, **backbone), outputs, 0, decoder)
    return MaskedImageModeling(model, target, predicted=decoder.predicted)


VQKD_CONFIG = VQKD(vocab_size=VOCAB, layer=4, code_dim=4, backbone=ViT(**SIZES), target_dim=32)
_RELAXATION = Relaxation(spread=0.1, dead_after=2)
OBJECTIVES = {
    "tokens": lambda: masked(Tokens(), Linear()),
    "released": lambda: masked(Tokens(), Linear(), positions="shared_relative", init_values=0.1, k_bias=False),
    "bias-of-blocks": lambda: masked(Tokens(), CrossAttention(), positions="block_relative"),
    "decoder": lambda: masked(Tokens(), CrossAttention(depth=2, predicted=0.5, mix_layers=True)),
    "soft-tokens": lambda: masked(SoftTokens(), CrossAttention()),
    "pixels": lambda: masked(Pixels(), Linear()),
    "dvae": lambda: DiscreteVAEObjective(TOKENIZERS[0].build(), _RELAXATION, 100),
    "dalle": lambda: DiscreteVAEObjective(TOKENIZERS[5].build(), Relaxation(hard=True), 100),
    "vq": lambda: QuantisedObjective(TOKENIZERS[1].build()),
    "fsq": lambda: QuantisedObjective(TOKENIZERS[2].build()),
    "vqkd": lambda: FeatureReconstruction(VQKD_CONFIG.build(), ViT(**SIZES).build()),
    "several-labels": lambda: ClassifySeveral(build_classifier(ViT(**SIZES), 5)),
    "classes": lambda: Classify(build_classifier(ViT(**SIZES), 5), 0.1),
    "segments": lambda: Segment(build_segmenter(ViT(**SIZES), 5, LinearHead())),
    "segments-four-levels": lambda: Segment(build_segmenter(ViT(**SIZES), 5, MultiLevel(width=8))),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_computed_on_the_device(name: str, training: bool) -> None:
    objective = OBJECTIVES[name]()
    objective.train(training)
    with pretended(waits=False):
        on_cuda(objective)
        if isinstance(objective, FeatureReconstruction):
            on_cuda(objective._teacher[0])
        given = replace(batch(), target=torch.zeros(4, 5, device=CUDA)) if name == "several-labels" else batch()
        output = objective(given, torch.tensor(3))
        found = {name: value.device for name, (value, _) in output.metrics.items()}
        assert found | {"loss": output.loss_sum.device} == dict.fromkeys([*found, "loss"], CUDA)


@pytest.mark.parametrize("config", TOKENIZERS, ids=lambda config: type(config).__name__)
def test_images_become_tokens_and_pictures_on_the_device(config: Any) -> None:
    tokenizer, compute = config.build().eval(), Compute(CUDA, torch.bfloat16)
    with pretended(), torch.no_grad():
        on_cuda(tokenizer)
        images = batch().image
        assert encode(images, tokenizer, compute, 8).device == CUDA
        assert tokenizer.decode(tokenizer.encode(images)).device == CUDA
        if hasattr(tokenizer, "logits"):
            assert all(value.device == CUDA for value in scored(images, tokenizer, batch().mask_index, compute))


@pytest.mark.parametrize("jitter", [ColorJitter(), ColorJitter(before_crop=True)])
def test_images_in_memory_are_cropped_and_coloured_on_the_device(jitter: ColorJitter, pinned: list[Tensor]) -> None:
    images = InMemoryDataset(torch.zeros(6, 3, 40, 40, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    source = InMemoryViewSource(images, TwoViews(RandomResizedCrop(), (32, 32), (16, 16), jitter), CUDA)
    with pretended(waits=False):
        views = source(Sampler(6, 4, 0)(0))
        assert views.token_image is not None
        assert (views.image.device, views.token_image.device) == (CUDA, CUDA)
    assert all(value.ndim < 4 for value in pinned), "images are gathered in pinned memory, and not copied there"


class Given:
    """The same batch in every step."""

    wait_seconds = 0.0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __call__(self, step: int) -> Batch:
        return self.batch

    def close(self) -> None:
        pass


def test_images_are_erased_and_mixed_on_the_device_and_nothing_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are read on the CPU: to read them from a GPU would be to wait for all that it was given before."""
    read = list[str]()

    def keys_of(batch: Batch) -> Keys:
        read.append(batch.key.device.type)
        return np.arange(4, dtype=np.uint64)

    monkeypatch.setattr("smalti.data.transforms.batch_transforms.keys_of", keys_of)
    given = Given(made())
    with pretended(waits=False):
        transforms = Erasing(1.0), partial(Mixing(0.8, 1.0), num_classes=5)
        done = TransformedBatches(given, transforms, CUDA)(0)
        assert {value.device for value in vars(done).values() if value is not None} == {CUDA}
    assert read == ["cpu", "cpu"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.change.__name__)
def test_operations_on_images_need_no_float64_of_the_device(operation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.data.transforms.randaugment.has_float64", lambda device: device.type == "cpu")
    amount = torch.from_numpy(operation.amount(np.full(2, 0.9), np.ones(2))).float()
    with pretended():
        assert operation.change(torch.empty(2, 3, 12, 10, device=CUDA), amount.to(CUDA)).device == CUDA
