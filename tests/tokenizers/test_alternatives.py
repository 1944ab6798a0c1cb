"""Vector quantisation, finite scalar quantisation and the baselines: one contract, and what is special about each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smalti.core.errors import DataError, UsageError
from smalti.functional.metrics import psnr
from smalti.models.vit import ViT, as_unit_range
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.quantised import FSQ, VQ, VectorQuantised
from smalti.tokenizers.simple import KMeansPatches, RandomProjection, whitening
from smalti.tokenizers.vqkd import VQKD
from tests import oracles
from tests.contracts import check_tokenizer

Config = DVAE | VQ | FSQ | KMeansPatches | RandomProjection | KMeansFeatures | VQKD
TEACHER = ViT(img_size=(32, 16), patch_size=4, embed_dim=16, depth=2, num_heads=2, init="xavier")
CONFIGS: list[Config] = [
    DVAE(vocab_size=16, stride=4, width=8, depth=1),
    VQ(vocab_size=16, stride=4, width=8, depth=1, code_dim=4),
    VQ(vocab_size=40, stride=8, in_chans=1, width=6, depth=0, code_dim=32),
    FSQ(levels=(4, 3, 3), stride=4, width=8, depth=1),
    FSQ(levels=(8, 5, 5, 5), stride=8, in_chans=1, width=3, depth=0),
    KMeansPatches(vocab_size=16, stride=4),
    KMeansPatches(vocab_size=16, stride=16, in_chans=1, whitening=0.5),
    RandomProjection(vocab_size=16, stride=4),
    RandomProjection(vocab_size=700, stride=8, in_chans=5, code_dim=3, whitening=1.0),
    KMeansFeatures(vocab_size=16, components=12, layer=2, backbone=TEACHER),
    VQKD(vocab_size=16, layer=2, decoder_depth=1, code_dim=8, backbone=TEACHER, target_dim=12),
]
SMALL = {type(config): config for config in CONFIGS[::-1]}


def smooth_images(channels: int, num: int = 24) -> torch.Tensor:
    """Noise of few frequencies, uint8, 32 x 16."""
    rng = torch.Generator().manual_seed(1)
    coarse = torch.rand(num, channels, 9, 5, generator=rng)
    fine = F.interpolate(coarse, (32, 16), mode="bilinear") + 0.05 * torch.rand(num, channels, 32, 16, generator=rng)
    return (255 * fine.clamp(0, 1)).to(torch.uint8)


def fitted(config: Config, num: int = 24, seed: int = 0) -> tuple[ImageTokenizer, torch.Tensor]:
    images, tokenizer = smooth_images(config.in_chans, num), config.build(seed)
    order = torch.from_numpy(np.random.default_rng(0).permutation(num * 512 // config.stride**2))
    tokenizer.initialise_from(images, order)
    return tokenizer, images


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("started", [True, False])
def test_contract(config: Config, started: bool) -> None:
    tokenizer, images = fitted(config) if started else (config.build(), smooth_images(config.in_chans))
    check_tokenizer(tokenizer, images)
    assert (tokenizer.vocab_size, tokenizer.stride) == (config.vocab_size, config.stride)
    assert tokenizer.config == config


@pytest.mark.parametrize("config", SMALL.values(), ids=str)
def test_a_tokenizer_that_has_been_started_describes_images(config: Config) -> None:
    """Better than the mean picture does, and with nearly all of its codes."""
    tokenizer, images = fitted(config)
    with torch.no_grad():
        ids = tokenizer.encode(images)
        decoded = tokenizer.decode(ids)
    pixels = as_unit_range(images)
    grey = psnr(pixels, pixels.mean((0, 2, 3), keepdim=True).expand_as(pixels)).mean()
    assert float(psnr(pixels, decoded).mean()) > float(grey) + 0.5
    assert len(ids.unique()) >= 0.7 * config.vocab_size


@pytest.mark.parametrize("config", SMALL.values(), ids=str)
def test_starting_twice_gives_the_same_bits_and_leaves_chance_alone(config: Config) -> None:
    torch.manual_seed(5)
    one, _ = fitted(config)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), drawn)
    other, _ = fitted(config)
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("make", [VQ, FSQ, DVAE, RandomProjection, lambda: CONFIGS[-2], lambda: CONFIGS[-1]])
def test_another_seed_gives_other_weights(make: Callable[[], Any]) -> None:
    one, other = (make().build(seed).state_dict() for seed in (1, 2))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("config", SMALL.values(), ids=str)
@pytest.mark.parametrize("colour", [[0.3, 0.3, 0.3], [0.8, 0.1, 0.1]])
def test_images_of_one_colour_are_refused(config: Config, colour: list[float]) -> None:
    images = torch.tensor(colour)[:, None, None].expand(2, 3, 32, 32)
    with pytest.raises(DataError, match="every patch of the images has a single colour; train on images that show"):
        config.build().initialise_from(images, torch.arange(128))


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3]], ids=str)
def test_half_precision_does_not_change_which_code_is_nearest(config: VQ | FSQ) -> None:
    """All that compares is float32: with a linear encoder the tokens are the same."""
    tokenizer, images = fitted(config)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ids = tokenizer.encode(images)
    with torch.no_grad():
        assert torch.equal(ids, tokenizer.encode(images))


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3]], ids=str)
def test_the_value_of_every_number_is_nearest_to_itself(config: VQ | FSQ) -> None:
    tokenizer = config.build()
    ids = torch.arange(config.vocab_size)
    assert torch.equal(tokenizer.nearest(tokenizer.values(ids)), ids)


def test_the_values_of_scalar_quantisation_are_all_codes() -> None:
    values = FSQ(levels=(4, 3, 5)).build().values(torch.arange(60))
    torch.testing.assert_close(values, torch.tensor(oracles.scalar_codes((4, 3, 5))))


def test_the_codes_of_vector_quantisation_have_unit_length() -> None:
    tokenizer, images = fitted(VQ(vocab_size=16, stride=4, width=8, depth=1, code_dim=4))
    assert isinstance(tokenizer, VectorQuantised)
    with torch.no_grad():
        for vectors in (tokenizer.codes, tokenizer.points(images)):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))


def test_the_codebook_follows_and_revives_in_place() -> None:
    tokenizer, images = fitted(VQ(vocab_size=16, stride=4, width=8, depth=1, code_dim=4, dead_after=2))
    assert isinstance(tokenizer, VectorQuantised)
    before, codes = tokenizer.codes.clone(), tokenizer.codes
    with torch.no_grad():
        points = tokenizer.points(images).flatten(0, 2)
    ids = torch.zeros(len(points), dtype=torch.int64)
    tokenizer.update_codebook(points, ids, 1)
    assert torch.equal(tokenizer.codes[1:], before[1:])
    assert float(tokenizer.meters()["alive"]) == 1 / 16
    tokenizer.update_codebook(points, ids, 2)
    assert tokenizer.codes is codes
    assert all(bool((points == code).all(1).any()) for code in codes[1:])


def test_meters_say_how_the_codebook_is_used() -> None:
    tokenizer, _ = fitted(VQ(vocab_size=16, stride=4, width=8, depth=1, code_dim=4))
    assert isinstance(tokenizer, VectorQuantised)
    assert {name: float(value) for name, value in tokenizer.meters().items()} == pytest.approx(
        {"alive": 1, "perplexity": 16}
    )


def test_k_means_tokens_are_the_nearest_centres_in_pixels() -> None:
    tokenizer, images = fitted(KMeansPatches(vocab_size=16, stride=4))
    pixels = as_unit_range(images).double().numpy()
    with torch.no_grad():
        ids = tokenizer.encode(images)
    centres = (tokenizer.centres @ tokenizer.projection + tokenizer.mean).double().numpy()  # type: ignore[operator]
    for image, found in zip(pixels[:3], ids[:3], strict=True):
        patches = oracles.patchify(image, 4)
        nearest = [int(np.argmin([np.sum((patch - centre) ** 2) for centre in centres])) for patch in patches]
        assert found.flatten().tolist() == nearest


@pytest.mark.parametrize("config", [CONFIGS[5], CONFIGS[7], CONFIGS[9], CONFIGS[10]], ids=str)
def test_a_code_paints_the_mean_of_its_patches(config: Config) -> None:
    tokenizer, images = fitted(config)
    patches = np.concatenate([oracles.patchify(image, 4) for image in as_unit_range(images).double().numpy()])
    ids = tokenizer.encode(images).flatten().numpy()
    painted = tokenizer.painted.numpy()  # type: ignore[operator]
    for code in range(config.vocab_size):
        mean = patches[ids == code].mean(0) if (ids == code).any() else patches.mean(0)
        np.testing.assert_allclose(painted[code], mean, atol=1e-5)
    alone = tokenizer.decode(torch.tensor([[[3]]]))
    np.testing.assert_allclose(oracles.patchify(alone[0].double().numpy(), 4)[0], painted[3], atol=1e-6)


def test_random_projection_takes_the_greatest_cosine() -> None:
    tokenizer, images = fitted(RandomProjection(vocab_size=16, stride=4))
    patches = F.pixel_unshuffle(as_unit_range(images), 4).permute(0, 2, 3, 1) - tokenizer.mean  # type: ignore[operator]
    points = patches @ tokenizer.projection.t()  # type: ignore[operator]
    cosines = F.normalize(points, dim=-1) @ F.normalize(tokenizer.centres, dim=-1).t()  # type: ignore[arg-type]
    assert torch.equal(tokenizer.encode(images), cosines.argmax(-1))
    torch.testing.assert_close(tokenizer.centres.norm(dim=1), torch.ones(16))  # type: ignore[operator]


def test_whitening_gives_principal_components_one_variance(rng: torch.Generator) -> None:
    points = torch.randn(4000, 5, generator=rng) @ torch.randn(5, 5, generator=rng)
    for power in (0.0, 0.5, 1.0):
        seen = (points - points.mean(0)) @ whitening(points - points.mean(0), power).t()
        covariance = torch.cov(seen.t())
        spread = torch.linalg.eigvalsh(torch.cov(points.t())).flip(0)
        torch.testing.assert_close(covariance, torch.diag(spread ** (1 - power)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VQ(vocab_size=1), "a vocabulary of 1"),
        (lambda: VQ(code_dim=1), "codes of 1 dimensions; use at least 2"),
        (lambda: VQ(commitment=-1.0), "a commitment of -1.0"),
        (lambda: VQ(decay=1.0), r"a decay of 1.0; use one in \[0, 1\)"),
        (lambda: VQ(dead_after=0), "codes dead after 0 steps"),
        (lambda: VQ(width=0), "a width of 0"),
        (lambda: FSQ(levels=()), r"levels \(\); use 3 or more for each number, such as 8 5 5 5"),
        (lambda: FSQ(levels=(8, 2)), r"levels \(8, 2\)"),
        (lambda: FSQ(levels=(8, 8, 8, 8, 8)), "a vocabulary of 32768; use 2 to 16384"),
        (lambda: FSQ(stride=5), "a stride of 5 pixels; use 4, 8 or 16"),
        (lambda: KMeansPatches(vocab_size=10**6), "a vocabulary of 1000000"),
        (lambda: KMeansPatches(in_chans=0), "0 channels; use at least 1"),
        (lambda: KMeansPatches(whitening=1.5), r"a whitening of 1.5; use one in \[0, 1\]"),
        (lambda: RandomProjection(whitening=-0.5), "a whitening of -0.5"),
        (lambda: RandomProjection(code_dim=1), "codes of 1 dimensions"),
        (lambda: KMeansFeatures(layer=0), "layer is 0; blocks are counted from 1"),
        (lambda: KMeansFeatures(vocab_size=1), "a vocabulary of 1; use 2 to 16384, or 0 for a size by images"),
        (lambda: KMeansFeatures(components=1), "1 principal components; use at least 2"),
        (lambda: VQKD(depth=0), "an encoder of 0 blocks; use at least 1"),
        (lambda: VQKD(decoder_depth=0), "a decoder of 0 blocks; use at least 1"),
        (lambda: VQKD(code_dim=1), "codes of 1 dimensions; use at least 2"),
        (lambda: VQKD(decay=1.0), "a decay of 1.0"),
        (lambda: KMeansFeatures().build(), "no teacher given; use --tokenizer.teacher MODEL"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
