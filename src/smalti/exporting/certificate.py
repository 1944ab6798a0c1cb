"""The parity certificate: what an exported model computes, re-loaded by its library, beside what ours computes."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti import __version__
from smalti.core.config import to_json
from smalti.core.errors import RefusedError, UsageError
from smalti.core.files import sha256, write_json
from smalti.exporting.loaded_model import Preprocessing
from smalti.functional.noise import uniform_noise

CERTIFICATE = "certificate.json"
TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest absolute value of the output."""
TOKEN_TOLERANCE = 0.01
"""Largest accepted share of visual tokens that differ: rounding decides between codes of nearly equal score."""
_IMAGES = 16

Pairs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Outputs by name: ours, and those of the exported model."""


@dataclass(frozen=True)
class Difference:
    """How far an output is from ours.

    Attributes:
        absolute: largest absolute difference; of visual tokens the number that differ.
        relative: the same, divided by the largest absolute value of our output; of visual tokens by their number.
        tolerance: largest accepted relative difference.
    """

    absolute: float
    relative: float
    tolerance: float

    @staticmethod
    def between(ours: Tensor, theirs: Tensor) -> "Difference":
        """The difference of two outputs; infinite where shapes differ or a value is not finite."""
        tolerance = TOLERANCE if ours.is_floating_point() else TOKEN_TOLERANCE
        if ours.shape != theirs.shape:
            return Difference(float("inf"), float("inf"), tolerance)
        if not ours.is_floating_point():
            differing = int((ours != theirs).sum())
            return Difference(differing, differing / max(ours.numel(), 1), tolerance)
        absolute = float((ours.double() - theirs.double()).abs().nan_to_num(nan=torch.inf).max())
        return Difference(absolute, absolute / max(float(ours.abs().max()), 1e-12), tolerance)


def require_packages(packages: Sequence[str], target: str) -> None:
    """Check that the libraries are there with which an export is re-loaded.

    Raises:
        UsageError: one is missing; the message has the command that installs it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        cause = f"smalti export --to {target} re-loads what it writes"
        raise UsageError(f"{missing[0]} is not installed", cause=cause, fix=f"pip install {' '.join(missing)}")


def sample_images(preprocessing: Preprocessing) -> Tensor:
    """16 images with large shapes and noise, the same in every call: B C H W, in [0, 1], multiples of 1/255."""
    height, width = preprocessing.size
    channels, coarse = preprocessing.channels, 4
    noise = uniform_noise(torch.arange(_IMAGES), channels * (height * width + coarse**2))
    fine, shapes = noise.split([channels * height * width, channels * coarse**2], dim=1)
    shapes = F.interpolate(shapes.view(-1, channels, coarse, coarse), (height, width), mode="bilinear")
    mixed = 0.7 * shapes + 0.3 * fine.view(-1, channels, height, width)
    return (mixed * 255).round() / 255


def certify(folder: Path, target: str, pairs: Pairs, packages: Sequence[str]) -> dict[str, Any]:
    """Compare, and write certificate.json; other files of the folder must be complete.

    Raises:
        RefusedError: an output differs by more than the tolerance.
    """
    found = {name: Difference.between(*pair) for name, pair in pairs.items()}
    for name, difference in found.items():
        if not difference.relative <= difference.tolerance:
            raise RefusedError(
                f"what was written computes other {name} than the model",
                cause=f"they differ by {difference.relative:.2g}, and {difference.tolerance:.2g} is accepted",
                fix="nothing was written; report it with the versions of smalti, torch and the library",
            )
    versions = {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    certificate = {
        "target": target,
        "images": _IMAGES,
        "differences": {name: to_json(difference) for name, difference in found.items()},
        "versions": {"smalti": __version__, "python": platform.python_version()} | versions,
        "sha256": {path.name: sha256(path.read_bytes()) for path in sorted(folder.iterdir())},
    }
    write_json(folder / CERTIFICATE, certificate)
    return certificate


def describe(certificate: Mapping[str, Any]) -> str:
    """One line: the largest difference of every output."""
    shown = (
        f"{name} {difference['absolute']:.2g} (relative {difference['relative']:.2g})"
        for name, difference in certificate["differences"].items()
    )
    return f"re-loaded, on {certificate['images']} images: largest difference of {', '.join(shown)}"
