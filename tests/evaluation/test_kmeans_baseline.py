"""k-means on patches, as a tokenizer."""

import torch

from smalti.evaluation.token_sample import NearestPatch, fit_kmeans_baseline
from smalti.functional.patches import patchify
from tests.contracts import check_tokenizer


def noise(count: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_contract() -> None:
    fitted = fit_kmeans_baseline(noise(), 16, 4)
    assert isinstance(fitted, NearestPatch)
    check_tokenizer(fitted, noise(3, seed=1))


def test_every_patch_gets_the_nearest_centre() -> None:
    fitted = fit_kmeans_baseline(noise(), 16, 4)
    assert fitted is not None
    patches = patchify(noise(4, seed=1).float() / 255, 4)
    expected = torch.cdist(patches.flatten(0, 1), fitted.centres).argmin(1)
    assert torch.equal(fitted.encode(noise(4, seed=1)).flatten(), expected)


def test_as_many_kinds_of_patches_as_codes_are_kept_exactly() -> None:
    kinds = noise(1, seed=2).repeat(10, 1, 1, 1)
    fitted = fit_kmeans_baseline(kinds, 4, 4)
    assert fitted is not None
    ids = fitted.encode(kinds)
    assert sorted(ids[0].flatten().tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(fitted.decode(ids), kinds / 255.0)


def test_constant_patches_have_no_part_in_it() -> None:
    assert fit_kmeans_baseline(torch.full((3, 3, 8, 8), 9, dtype=torch.uint8), 4, 4) is None
    mixed = noise()
    mixed[:, :, :4] = 0
    only_varied = fit_kmeans_baseline(mixed[:, :, 4:], 16, 4)
    fitted = fit_kmeans_baseline(mixed, 16, 4)
    assert fitted is not None
    assert only_varied is not None
    assert torch.equal(fitted.centres, only_varied.centres)
