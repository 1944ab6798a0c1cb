"""VQ-KD against its equations: the nearest code, the codes' gradient, the loss, and what follows a step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from smalti.core.contracts import Batch
from smalti.core.errors import UsageError
from smalti.core.rng import fold, signed
from smalti.models.vit import VisionTransformer, ViT
from smalti.tokenizers.vqkd import VQKD, VQKDTokenizer
from smalti.training.objectives import FeatureReconstruction
from tests import oracles

VIT = ViT(img_size=(16, 8), patch_size=4, embed_dim=16, depth=3, num_heads=2, init="xavier")
STEP = torch.tensor(0)
COUNT = 6


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Noise of few frequencies, in [0, 1]."""
    coarse = torch.rand(COUNT, 3, 5, 3, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, VIT.img_size, mode="bilinear")


@pytest.fixture(scope="module")
def teacher() -> VisionTransformer:
    return VIT.build(seed=5).eval()


def made(teacher: VisionTransformer, images: torch.Tensor) -> tuple[VQKDTokenizer, VisionTransformer]:
    """A tokenizer at step 0, and the part of the teacher that it learns from."""
    config = VQKD(vocab_size=7, depth=2, decoder_depth=1, code_dim=3, commitment=0.5, decay=0.9, dead_after=2)
    config, used = config.with_teacher(teacher)
    tokenizer = config.build(seed=1)
    tokenizer.fit_to_teacher(used, images)
    tokenizer.initialise_from(images, torch.arange(COUNT * 8))
    return tokenizer, used


def batch(images: torch.Tensor) -> Batch:
    key = torch.from_numpy(signed(fold(np.arange(len(images)))))
    return Batch(image=images, index=torch.arange(len(images)), key=key)


def test_the_code_of_a_patch_has_the_greatest_cosine(teacher: VisionTransformer, images: torch.Tensor) -> None:
    tokenizer, _ = made(teacher, images)
    with torch.no_grad():
        features = tokenizer.backbone(images).patches
        points, ids = tokenizer.to_code(features).double().numpy(), tokenizer.encode(images)
    codes = 3.0 * tokenizer.codes.double().numpy()  # whose lengths do not matter
    for image, found in zip(points, ids.flatten(1), strict=True):
        assert found.tolist() == [int(np.argmax([oracles.cosine(h, v) for v in codes])) for h in image]
    torch.testing.assert_close(tokenizer.codes.norm(dim=1), torch.ones(7))


def test_the_loss_equals_the_equation(teacher: VisionTransformer, images: torch.Tensor) -> None:
    """Mean of 1 - cos(o, t) + β · ‖l2(h) - l2(v)‖²; t is of block 2 of 3, normalised, less the mean of its position."""
    tokenizer, used = made(teacher, images)
    with torch.no_grad():
        output = FeatureReconstruction(tokenizer, used)(batch(images), STEP)
        block = teacher.encode(teacher.embed(images), layers=True).layers[1][:, 1:].double().numpy()
        ids = tokenizer.encode(images)
        codes = tokenizer.codes[ids].permute(0, 3, 1, 2)
        features = tokenizer.decoder.encode(tokenizer.decoder.embed(codes)).patches
        told = tokenizer.to_features(features).double().numpy()
        h = tokenizer.to_code(tokenizer.backbone(images).patches).double().numpy()
    normal = np.stack([oracles.layer_norm(image, np.ones(16), np.zeros(16), eps=1e-5) for image in block])
    wanted = normal - normal.mean(0)
    cosines = [oracles.cosine(o, t) for o, t in zip(told.reshape(-1, 16), wanted.reshape(-1, 16), strict=True)]
    length = np.linalg.norm(h, axis=-1, keepdims=True)
    gap = ((h / length - tokenizer.codes[ids].flatten(1, 2).double().numpy()) ** 2).sum(-1).mean()
    assert float(output.weight) == COUNT
    assert float(output.loss_sum) / COUNT == pytest.approx(1 - np.mean(cosines) + 0.5 * gap, rel=1e-4)
    assert float(output.metrics["cosine"][0]) / COUNT == pytest.approx(np.mean(cosines), rel=1e-4)
    assert float(output.metrics["gap"][0]) / COUNT == pytest.approx(gap, rel=1e-4)


def test_the_gradient_of_a_point_is_that_of_its_code(teacher: VisionTransformer, images: torch.Tensor) -> None:
    tokenizer, _ = made(teacher, images)
    points = tokenizer.points(images).detach().requires_grad_(True)
    ids = tokenizer.nearest(points)
    codes = tokenizer.values(ids).detach().requires_grad_(True)
    told = tokenizer.predicted_features(points, ids)
    told.pow(3).sum().backward()
    features = tokenizer.decoder.encode(tokenizer.decoder.embed(codes.permute(0, 3, 1, 2))).patches
    tokenizer.to_features(features).pow(3).sum().backward()
    assert points.grad is not None
    assert codes.grad is not None
    torch.testing.assert_close(points.grad, codes.grad)


def test_every_parameter_learns_and_the_teacher_does_not(teacher: VisionTransformer, images: torch.Tensor) -> None:
    tokenizer, used = made(teacher, images)
    objective = FeatureReconstruction(tokenizer, used)
    objective(batch(images), STEP).loss_sum.backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(parameter.grad is None for parameter in used.parameters())
    assert not used.training
    assert {name.split(".")[0] for name in objective.state_dict()} == {"model"}


def test_codes_and_their_patches_follow_a_training_step_once(teacher: VisionTransformer, images: torch.Tensor) -> None:
    tokenizer, used = made(teacher, images)
    objective = FeatureReconstruction(tokenizer, used)
    before = type(tokenizer.codebook)(*(value.clone() for value in tokenizer.codebook))
    painted, pixels = tokenizer.painted.double().numpy().copy(), images.double().numpy()
    objective(batch(images), STEP)
    assert torch.equal(tokenizer.codes, before.codes)
    with torch.no_grad():
        points, ids = (
            tokenizer.points(images).flatten(0, 2).double().numpy(),
            tokenizer.encode(images).flatten().numpy(),
        )
    objective.after_step(1)
    codes, sizes, sums = (value.double().numpy() for value in before[:3])
    expected = oracles.follow_codebook(codes, sizes, sums, before.unused.numpy(), points, ids, 0.9)
    for ours, theirs in zip(tokenizer.codebook, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    patches = np.concatenate([oracles.patchify(image, 4) for image in pixels])
    wanted = oracles.ema_update_means(painted, sizes, patches, ids, 0.9)
    np.testing.assert_allclose(tokenizer.painted, wanted, rtol=1e-4, atol=1e-5)
    now = tokenizer.codes.clone()
    objective.after_step(2)
    assert torch.equal(tokenizer.codes, now)
    objective.eval()(batch(images), STEP)
    objective.after_step(3)
    assert torch.equal(tokenizer.codes, now)


def test_a_dead_code_is_painted_as_the_patch_that_it_moves_to(teacher: VisionTransformer, images: torch.Tensor) -> None:
    tokenizer, _ = made(teacher, images)
    patches = torch.from_numpy(np.concatenate([oracles.patchify(image, 4) for image in images.numpy()]))
    with torch.no_grad():
        points = tokenizer.points(images).flatten(0, 2)
    for step in (1, 2):
        tokenizer.update_codebook_and_patches(points, torch.zeros(len(points), dtype=torch.int64), patches, step)
    for code in range(1, 7):
        moved_to = (points == tokenizer.codes[code]).all(1)
        assert torch.equal(tokenizer.painted[code], patches[moved_to][0])


def test_the_encoder_is_as_wide_as_the_teacher_and_as_deep_as_is_asked(teacher: VisionTransformer) -> None:
    dropped = replace(VIT, drop_path_rate=0.2, init="uniform").build()
    config, used = VQKD().with_teacher(dropped)
    assert (config.layer, config.target_dim, used.config.depth) == (2, 16, 2)
    assert config.known_backbone == replace(VIT, depth=2, drop_path_rate=0.0, init="width")
    config, used = VQKD(layer=3, depth=1).with_teacher(teacher)
    assert (config.known_backbone.depth, used.config.depth, config.layer) == (1, 3, 3)
    with pytest.raises(UsageError, match="layer 4 of a teacher of 3 blocks; use 1 to 3"):
        VQKD(layer=4).with_teacher(teacher)


def test_the_encoder_starts_with_small_positions_whatever_the_teachers_are() -> None:
    """With an amplitude of 1 codes named the position of a patch, and nothing else, for hundreds of steps."""
    config, used = VQKD().with_teacher(replace(VIT, pos_amplitude=1.0).build())
    assert used.config.pos_amplitude == 1.0
    assert config.known_backbone.pos_amplitude == 0.1
