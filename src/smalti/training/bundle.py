"""A bundle: a folder with the weights of a trained model and its configuration, and nothing that training needs.

Its config.json is that of a run, and has also an entry `bundle`, so that what reads a run reads a bundle too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smalti import __version__
from smalti.core.config import from_json, to_json
from smalti.core.errors import CheckpointError, SmaltiError
from smalti.core.files import sha256, write_bytes, write_json
from smalti.core.stored import open_stored, read_object
from smalti.core.tensors import from_safetensors, to_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG = 2**20
"""Bytes of a configuration that are read; those of the largest recipe have 3000."""


@dataclass(frozen=True)
class Bundle:
    """The entry in config.json.

    Attributes:
        step: number of optimiser steps that the model was trained.
        sha256: digest of model.safetensors.
        tokenizer_sha256: digest of the tokenizer whose tokens were predicted; empty where there was none.
        source: the file of another program that the weights were imported from; then settings of training mean nothing.
    """

    step: int
    sha256: str
    tokenizer_sha256: str = ""
    source: str = ""


def write_bundle(
    folder: Path, config: Any, step: int, tokenizer: str, weights: dict[str, Tensor], source: str = ""
) -> None:
    """Write weights and configuration of a model.

    Args:
        folder: exists already.
    """
    data = to_safetensors(weights)
    write_bytes(folder / WEIGHTS, data)
    about = {"smalti": __version__, "config": config, "bundle": to_json(Bundle(step, sha256(data), tokenizer, source))}
    write_json(folder / CONFIG, about)


def read_bundle(folder: Path) -> Bundle | None:
    """The entry of a bundle; None where the folder is something else."""
    path = folder / CONFIG
    try:
        return from_json(Bundle, read_object(path, MAX_CONFIG, follow=True)["bundle"], where="bundle")
    except (OSError, ValueError, KeyError, SmaltiError):
        return None


def read_bundle_weights(folder: Path, bundle: Bundle) -> dict[str, Tensor]:
    """The weights of a bundle, by name.

    Raises:
        CheckpointError: they are missing, or are not those that were written.
    """
    try:
        with open_stored(folder / WEIGHTS, follow=True) as file:
            data = file.read()
        if sha256(data) != bundle.sha256:
            raise ValueError("it is not the file that was written")
        return from_safetensors(data)
    except (OSError, ValueError) as error:
        cause = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{folder / WEIGHTS} is damaged", cause=cause, fix="export the model again") from error
