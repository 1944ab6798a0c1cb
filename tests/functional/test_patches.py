"""Images to patches and back."""

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given

from smalti.functional.patches import normalised_patches, patchify, unpatchify, varied_patches
from tests import oracles

sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(sizes)
def test_patchify_cuts_row_by_row_and_channel_first(size: tuple[int, int, int, int]) -> None:
    channels, patch, rows, columns = size
    images = torch.randn(2, channels, rows * patch, columns * patch, generator=torch.Generator().manual_seed(0))
    expected = np.stack([oracles.patchify(image.double().numpy(), patch) for image in images])
    assert np.array_equal(patchify(images, patch).double().numpy(), expected)


@given(sizes)
def test_unpatchify_is_the_inverse(size: tuple[int, int, int, int]) -> None:
    channels, patch, rows, columns = size
    images = torch.randn(2, channels, rows * patch, columns * patch, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpatchify(patchify(images, patch), patch, (rows, columns)), images)


def test_patchify_times_a_matrix_is_the_strided_convolution(rng: torch.Generator) -> None:
    images, kernel = torch.randn(2, 3, 6, 9, generator=rng), torch.randn(5, 3, 3, 3, generator=rng)
    convolved = torch.nn.functional.conv2d(images, kernel, stride=3).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(images, 3) @ kernel.flatten(1).T, convolved, rtol=1e-4, atol=1e-5)


def test_patches_of_one_value_in_each_channel_are_not_varied() -> None:
    image = torch.zeros(1, 2, 4, 8)
    image[0, 1, :, :4] = 0.5  # another value in the other channel is still one colour
    image[0, 0, 1, 6] = 0.1  # one pixel of the second patch
    assert varied_patches(image, 4).tolist() == [[False, True]]


def test_varied_patches_is_row_major() -> None:
    image = torch.zeros(1, 1, 4, 6)
    image[0, 0, 2, 5] = 1  # patch row 1, column 2
    assert varied_patches(image, 2).tolist() == [[False, False, False, False, False, True]]


def test_normalised_patches_are_those_of_mae_and_can_be_undone(rng: torch.Generator) -> None:
    patches = torch.rand(2, 3, 12, generator=rng)
    patches[1, 2] = 0.25  # of one colour: nothing to divide by
    found, mean, scale = normalised_patches(patches)
    expected = np.array([[oracles.normalised_patch(p) for p in row] for row in patches.double().numpy()])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found * scale + mean, patches)
    assert not found[1, 2].any()


def test_uint8_images_are_cut_too(rng: torch.Generator) -> None:
    images = torch.randint(256, (2, 3, 8, 12), generator=rng, dtype=torch.uint8)
    images[:, :, :4, :4] = 7
    patches = patchify(images, 4)
    assert patches.dtype == torch.uint8
    assert torch.equal(patches.float(), patchify(images.float(), 4))
    assert varied_patches(images, 4).tolist() == [[False] + [True] * 5] * 2
