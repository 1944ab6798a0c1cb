"""What every implementation of a protocol must do; one function a protocol, called by the tests of each part."""

import numpy as np
import torch
from torch import Tensor, nn

from smalti.core.contracts import Backbone, Masking, Sample, Source, Tokenizer
from smalti.core.rng import fold

GRIDS = ((14, 14), (7, 7), (1, 2), (2, 1), (2, 2), (3, 8), (20, 20), (1, 16), (30, 2))


def check_backbone(backbone: Backbone, images: Tensor) -> None:
    """`images`: at least two different uint8 images, B C H W."""
    assert isinstance(backbone, Backbone)
    assert images.dtype == torch.uint8
    assert len(images) >= 2
    grid = (images.shape[-2] // backbone.patch_size, images.shape[-1] // backbone.patch_size)
    num_patches, width = grid[0] * grid[1], backbone.embed_dim
    with torch.no_grad():
        tokens = backbone.embed(images)
        plain, detailed = backbone.encode(tokens, grid), backbone.encode(tokens, grid, layers=True)
        alone = backbone.encode(backbone.embed(images[1:2]), grid)
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


def _check_gradients(backbone: Backbone, images: Tensor, grid: tuple[int, int]) -> None:
    """Every trained parameter has a part in the features."""
    if not isinstance(backbone, nn.Module):
        return
    backbone.zero_grad()
    features = backbone.encode(backbone.embed(images), grid)
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
    """Masks of every grid are functions of the key alone, hide something and leave something."""
    assert isinstance(masking, Masking)
    for grid in GRIDS:
        keys = fold(7, np.arange(40))
        masks = masking(keys, grid)
        hidden = masks.sum(axis=1)
        assert masks.dtype == np.bool_
        assert masks.shape == (len(keys), grid[0] * grid[1])
        assert hidden.min() >= 1, f"an empty mask on {grid}"
        assert hidden.max() <= masking.count(grid) < grid[0] * grid[1], f"too much hidden on {grid}"
        assert masking(keys[:0], grid).shape == (0, grid[0] * grid[1])
        assert np.array_equal(masks, masking(keys, grid)), "the same key must give the same mask"
        assert np.array_equal(masks[::-1], masking(keys[::-1], grid)), "a mask must not depend on its place"
        one_by_one = np.concatenate([masking(keys[i : i + 1], grid) for i in range(5)])
        assert np.array_equal(masks[:5], one_by_one), "a mask must not depend on the batch"
    assert len(np.unique(masking(fold(7, np.arange(40)), (14, 14)), axis=0)) == 40, "keys must give different masks"


def check_source(source: Source) -> None:
    """Random access, the same every time, of H W C uint8 images with C = 1 or 3."""
    assert isinstance(source, Source)
    assert len(source) >= 1
    keys = set()
    for index in range(min(len(source), 8)):
        sample, again = source[index], source[index]
        assert isinstance(sample, Sample)
        assert sample.image.dtype == np.uint8
        assert sample.image.ndim == 3
        assert sample.image.shape[2] in (1, 3)
        assert np.array_equal(sample.image, again.image)
        assert (sample.label, sample.key) == (again.label, again.key)
        assert sample.label in range(len(source.classes)) if source.classes else sample.label == -1
        keys.add(sample.key)
    assert len(keys) == min(len(source), 8), "keys must name one image each"
    try:
        source[len(source)]
    except IndexError:
        return
    raise AssertionError("reading past the end must be an IndexError")
