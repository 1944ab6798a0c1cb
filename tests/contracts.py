"""What every implementation of a protocol must do; one function a protocol, called by the tests of each part."""

import json
import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.core.contracts import Batch, Masking, Sample, Target, Tokenizer
from smalti.core.log import Log
from smalti.core.rng import fold
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.formats import MAX_CHANNELS
from smalti.models.vit import VisionTransformer

GRIDS = ((14, 14), (7, 7), (1, 2), (2, 1), (2, 2), (3, 8), (20, 20), (1, 16), (30, 2))


def check_backbone(backbone: VisionTransformer, images: Tensor) -> None:
    """`images`: at least two different uint8 images, B C H W."""
    assert images.dtype == torch.uint8
    assert len(images) >= 2
    grid = (images.shape[-2] // backbone.patch_size, images.shape[-1] // backbone.patch_size)
    num_patches, width = grid[0] * grid[1], backbone.embed_dim
    with torch.no_grad():
        tokens = backbone.embed(images)
        plain, detailed = backbone.encode(tokens), backbone.encode(tokens, layers=True)
        alone = backbone.encode(backbone.embed(images[1:2]))
        from_floats = backbone.embed(images.float() / 255)

    assert tokens.shape == (len(images), num_patches, width)
    assert plain.cls.shape == (len(images), width)
    assert plain.patches.shape == (len(images), num_patches, width)
    assert plain.layers == ()
    assert len(detailed.layers) >= 1
    assert all(layer.shape == (len(images), 1 + num_patches, width) for layer in detailed.layers)
    assert torch.equal(plain.cls, detailed.cls), "asking for the layers must not change the features"
    assert torch.equal(tokens, from_floats), "uint8 and float in [0, 1] must be the same image"
    torch.testing.assert_close(alone.patches, plain.patches[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.cls[0], plain.cls[1]), "features must depend on the image"
    assert torch.isfinite(plain.patches).all()
    _check_gradients(backbone, images, grid)


def _check_gradients(backbone: VisionTransformer, images: Tensor, grid: tuple[int, int]) -> None:
    """Every trained parameter has a part in the features."""
    backbone.zero_grad()
    features = backbone.encode(backbone.embed(images))
    (features.cls.square().sum() + features.patches.pow(3).sum()).backward()
    unused = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    backbone.zero_grad()


def check_tokenizer(tokenizer: Tokenizer, images: Tensor) -> None:
    """`images`: at least two different uint8 images, B C H W, whose sides are multiples of the stride."""
    assert isinstance(tokenizer, Tokenizer)
    assert images.dtype == torch.uint8
    assert len(images) >= 2
    grid = (images.shape[-2] // tokenizer.stride, images.shape[-1] // tokenizer.stride)
    with torch.no_grad():
        ids, again = tokenizer.encode(images), tokenizer.encode(images)
        from_floats = tokenizer.encode(images.float() / 255)
        ids_alone = tokenizer.encode(images[1:2])
        decoded, decoded_again = tokenizer.decode(ids), tokenizer.decode(ids)
        decoded_alone = tokenizer.decode(ids[1:2])
        extremes = [tokenizer.decode(torch.full_like(ids, value)) for value in (0, tokenizer.vocab_size - 1)]

    assert ids.dtype == torch.int64
    assert ids.shape == (len(images), *grid)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < tokenizer.vocab_size
    assert torch.equal(ids, again), "encoding must be deterministic"
    assert torch.equal(ids, from_floats), "uint8 and float in [0, 1] must be the same image"
    # Convolutions of another batch size may round differently; a tie in 1 % of the positions may fall the other way.
    assert (ids_alone == ids[1:2]).double().mean() >= 0.99, "tokens must not depend on the other images of the batch"

    for picture in (decoded, *extremes):
        assert picture.shape == images.shape
        assert picture.is_floating_point()
        assert float(picture.min()) >= 0
        assert float(picture.max()) <= 1
    assert torch.equal(decoded, decoded_again), "decoding must be deterministic"
    torch.testing.assert_close(decoded_alone, decoded[1:2], rtol=1e-4, atol=1e-5)


def check_masking(masking: Masking) -> None:
    """Masks of every grid are functions of the key alone, mask something and leave something."""
    assert isinstance(masking, Masking)
    for grid in GRIDS:
        keys = fold(7, np.arange(40))
        masks = masking(keys, grid)
        masked = masks.sum(axis=1)
        assert masks.dtype == np.bool_
        assert masks.shape == (len(keys), grid[0] * grid[1])
        assert masked.min() >= 1, f"an empty mask on {grid}"
        assert masked.max() <= masking.count(grid) < grid[0] * grid[1], f"too much masked on {grid}"
        assert masking(keys[:0], grid).shape == (0, grid[0] * grid[1])
        assert np.array_equal(masks, masking(keys, grid)), "the same key must give the same mask"
        assert np.array_equal(masks[::-1], masking(keys[::-1], grid)), "a mask must not depend on its place"
        one_by_one = np.concatenate([masking(keys[i : i + 1], grid) for i in range(5)])
        assert np.array_equal(masks[:5], one_by_one), "a mask must not depend on the batch"
    assert len(np.unique(masking(fold(7, np.arange(40)), (14, 14)), axis=0)) == 40, "keys must give different masks"


def check_dataset(dataset: ImageDataset) -> None:
    """Random access, the same every time and in every process, of encoded images that decode to H W C uint8."""
    count = len(dataset)
    assert count >= 1
    assert 1 <= dataset.channels <= MAX_CHANNELS
    assert all(isinstance(note, str) for note in dataset.notes)
    json.dumps(dataset.left_out.as_dict())
    dataset.verify(Log())
    some = list(range(min(count, 8)))
    for index in some:
        _check_image(dataset, index)
    assert len({dataset.key(index) for index in some}) == len(some), "keys must name one image each"
    assert dataset.labels_at(np.array(some)).tolist() == [dataset.label(index) for index in some]
    assert dataset.fingerprint() == dataset.fingerprint()
    with pytest.raises(IndexError):
        dataset[count]
    part, sent = dataset.select(np.array(some[::-1])), pickle.loads(pickle.dumps(dataset))
    assert (len(part), part.channels, part.classes) == (len(some), dataset.channels, dataset.classes)
    assert (part.no_labels, part.made_window) == (dataset.no_labels, dataset.made_window)
    assert sent.fingerprint() == dataset.fingerprint()
    for place, index in enumerate(some[::-1]):
        assert part.read(place) == sent.read(index) == dataset.read(index)
        assert part.label(place) == sent.label(index) == dataset.label(index)
    if count > 1:
        assert part.fingerprint() != dataset.fingerprint(), "another order is another dataset"
    if dataset.pixels is not None:
        assert dataset.pixels.shape[:2] == (count, dataset.channels)
        assert all(np.array_equal(dataset.pixels[i].permute(1, 2, 0).numpy(), dataset[i].image) for i in some)


def _check_image(dataset: ImageDataset, index: int) -> None:
    sample, again, data = dataset[index], dataset[index], dataset.read(index)
    assert isinstance(sample, Sample)
    assert sample.image.dtype == np.uint8
    assert sample.image.ndim == 3
    assert sample.image.shape[2] == dataset.channels
    assert np.array_equal(sample.image, again.image)
    assert np.array_equal(sample.image, dataset.decoded(index, data, None).image)
    assert (sample.label, sample.key) == (dataset.label(index), dataset.key(index))
    labelled = dataset.classes and sample.label_map is None
    assert sample.label in range(len(dataset.classes)) if labelled else sample.label == -1
    assert dataset.name(index).endswith(sample.key[-3:])
    assert dataset.length(index) in (0, len(data))
    small = max(1, min(sample.image.shape[:2]) // 2)
    assert min(dataset.shrunk(index, small).image.shape[:2]) == small


def check_target(target: Target, batch: Batch, width: int) -> None:
    """`batch`: at least two images with all that the target reads, and some padding among the masked patches."""
    assert isinstance(target, Target)
    assert batch.mask is not None
    assert batch.mask_index is not None
    weight = batch.mask_weight
    assert weight is not None
    assert (weight == 0).any()
    rng = torch.Generator().manual_seed(0)
    predicted = torch.randn(*weight.shape, width, generator=rng).requires_grad_(True)
    output = target(predicted, batch, weight)
    output.loss_sum.backward()

    assert output.loss_sum.shape == output.weight.shape == ()
    assert float(output.weight) == float(weight.sum())
    assert torch.isfinite(output.loss_sum)
    assert predicted.grad is not None
    assert torch.equal(predicted.grad.abs().sum(-1) > 0, weight > 0), "masked patches are learned from, padding is not"
    for total, count in output.metrics.values():
        assert not total.requires_grad
        assert not count.requires_grad
        assert float(count) > 0

    double = target(predicted, batch, 2 * weight)
    torch.testing.assert_close(double.loss_sum, 2 * output.loss_sum)
    rough = target(predicted.detach().bfloat16(), batch, weight)
    assert rough.loss_sum.dtype == torch.float32, "sums are in float32, whatever the network computes in"
    torch.testing.assert_close(rough.loss_sum, output.loss_sum.detach(), rtol=0.02, atol=0.02)
    _check_parts(target, batch, predicted.detach(), weight)
    seen = replace(batch, image=_with_visible(batch, 0.3), ids=_with_other_tokens(batch))
    torch.testing.assert_close(target(predicted.detach(), seen, weight).loss_sum, output.loss_sum.detach())


def _check_parts(target: Target, batch: Batch, predicted: Tensor, weight: Tensor) -> None:
    """Sums and counts of unequal parts of a batch add up to those of the whole."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    parts = []
    for part in (slice(0, 1), slice(1, None)):
        some: dict[str, Any] = {name: value if value is None else value[part] for name, value in values.items()}
        parts.append(target(predicted[part], Batch(**some), weight[part]))
    whole = target(predicted, batch, weight)
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum)
    assert float(sum(part.weight for part in parts)) == float(whole.weight)
    for name, (total, count) in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name][0] for part in parts), total)
        torch.testing.assert_close(sum(part.metrics[name][1] for part in parts), count)


def _with_visible(batch: Batch, level: float) -> Tensor:
    """The images with another colour wherever no patch is masked."""
    assert batch.mask is not None
    height, width = batch.image.shape[-2:]
    size = round((height * width / batch.mask.shape[1]) ** 0.5)
    grid = batch.mask.view(-1, height // size, width // size)
    masked = grid.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, None]
    return torch.where(masked, batch.image, torch.full_like(batch.image, level))


def _with_other_tokens(batch: Batch) -> Tensor | None:
    """The visual tokens, and other ones wherever no patch is masked."""
    assert batch.mask is not None
    return (
        None if batch.ids is None else torch.where(batch.mask, batch.ids, (batch.ids + 1) % (1 + int(batch.ids.max())))
    )
