"""The certificate: what counts as a difference, and that nothing is left of an export that computes something else."""

import json
from pathlib import Path

import pytest
import torch

from smalti import __version__
from smalti.core.errors import RefusedError, UsageError
from smalti.exporting.certificate import Difference, certify, describe, require_packages, sample_images
from smalti.exporting.loaded_model import Preprocessing


def test_differences() -> None:
    ours = torch.tensor([[1.0, -4.0], [0.5, 2.0]])
    assert Difference.between(ours, ours) == Difference(0, 0, 1e-4)
    assert Difference.between(ours, ours + 0.5) == Difference(0.5, 0.125, 1e-4)
    ids = torch.tensor([1, 2, 3, 4])
    assert Difference.between(ids, ids.flip(0)) == Difference(4, 1.0, 0.01)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.tensor([0.0, float("nan")]), torch.tensor([0.0, torch.inf])])
def test_other_shapes_and_values_that_are_not_finite_are_infinitely_far(other: torch.Tensor) -> None:
    assert Difference.between(torch.zeros(2), other).relative == float("inf")


def test_a_certificate_names_versions_and_digests(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    pairs = {"features": (torch.ones(2), torch.ones(2) + 1e-6)}
    certificate = certify(tmp_path, "there", pairs, ("torch", "numpy"))
    assert json.loads((tmp_path / "certificate.json").read_bytes()) == certificate
    assert certificate["sha256"] == {"weights": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert certificate["versions"].keys() == {"smalti", "python", "torch", "numpy"}
    assert certificate["versions"]["smalti"] == __version__
    assert "largest difference of features 9.5e-07 (relative 9.5e-07)" in describe(certificate)


def test_what_computes_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="other logits than the model; they differ by 0"):
        certify(tmp_path, "there", {"logits": (torch.full((2,), 2.0), torch.ones(2))}, ())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UsageError) as caught:
        require_packages(("torch", "no_such_library"), "there")
    message = "no_such_library is not installed; smalti export --to there re-loads what it writes"
    assert str(caught.value) == f"{message}; pip install no_such_library"


def test_the_images_are_always_the_same_and_are_pixels() -> None:
    shown = Preprocessing((12, 20), (0.5,) * 3, (0.5,) * 3)
    images = sample_images(shown)
    assert images.shape == (16, 3, 12, 20)
    assert torch.equal(images, sample_images(shown))
    assert torch.equal((images * 255).round() / 255, images)
    assert 0 <= images.min() < 0.2
    assert 0.8 < images.max() <= 1
    assert len({image.numpy().tobytes() for image in images}) == 16
