"""Load the tokenizer in a folder, whether trained by `smalti train-tokenizer` or imported."""

from pathlib import Path

import torch

from smalti.core.compute import Compute
from smalti.core.config import from_json, require
from smalti.core.errors import CheckpointError, SmaltiError, UsageError
from smalti.core.stored import parse_object, read_folder
from smalti.core.tensors import from_safetensors
from smalti.data.load import Data
from smalti.data.tokens import Scorer
from smalti.runs.folder import read_config, read_kind
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dalle import DallE, DallETokenizer
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.checkpoint import load_frozen, read_checkpoint, require_alike
from smalti.training.targets import Pixels, SoftTokens, Tokens

IMPORTED_CONFIG, IMPORTED_WEIGHTS = "config.json", "model.safetensors"
"""Files of an imported tokenizer."""


def load_tokenizer(run: str, compute: Compute) -> ImageTokenizer:
    """The tokenizer of a run folder, of whichever kind, or an imported one; frozen."""
    if read_kind(run) == DallE.__name__:
        return load_dalle(run, compute)
    config, weights = read_config(run, TrainTokenizer).tokenizer, read_checkpoint(Path(run).expanduser()).model
    require_alike(config, weights, run)
    return load_frozen(config.build(), weights, run, compute.device)


def load_dalle(folder: str, compute: Compute) -> DallETokenizer:
    """The tokenizer in a folder that `smalti import` wrote, frozen.

    Raises:
        CheckpointError: the folder is incomplete, or its weights do not fit its configuration.
    """
    try:
        files = read_folder(Path(folder).expanduser())
        config = from_json(DallE, parse_object(files[IMPORTED_CONFIG])["config"])
        weights = from_safetensors(files[IMPORTED_WEIGHTS])
    except (ValueError, KeyError, TypeError, CheckpointError, UsageError) as error:
        cause = "a file of it is missing or damaged"
        raise CheckpointError(f"no usable tokenizer in {folder}", cause=cause, fix="import it again") from error
    require_alike(config, weights, folder)
    return load_frozen(config.build(), weights, folder, compute.device)


def target_tokenizer(run: str, target: Tokens | SoftTokens | Pixels, compute: Compute) -> ImageTokenizer | None:
    """The tokenizer that a target needs; none for pixels.

    Raises:
        UsageError: the target needs a posterior, and the tokenizer has none.
    """
    if isinstance(target, Pixels):
        return None
    tokenizer = load_tokenizer(run, compute)
    require(
        isinstance(tokenizer, Scorer) or not isinstance(target, SoftTokens),
        f"soft targets are not to be had from {run}: a {type(tokenizer.config).__name__} tokenizer chooses"
        " a code and has no scores",
        "use --target tokens, or a discrete VAE",
    )
    return tokenizer


def tokenizer_data(run: str, tokenizer: ImageTokenizer) -> Data:
    """The image settings of the tokenizer in a folder."""
    if read_kind(run) == DallE.__name__:
        return Data(channels=tokenizer.config.in_chans, side=112)
    return read_config(run, TrainTokenizer).data


def has_density(run: str) -> bool:
    """Whether p(x|z) of the tokenizer in a folder was trained as a density, and not as a pixel error."""
    return read_kind(run) == DallE.__name__ or read_config(run, TrainTokenizer).likelihood == "logit_laplace"


def is_tokenizer(run: str, tokenizer: ImageTokenizer, compute: Compute) -> bool:
    """Whether the tokenizer of a folder has the same weights as this one; False if it no longer or never existed."""
    try:
        theirs, ours = load_tokenizer(run, compute).state_dict(), tokenizer.state_dict()
    except SmaltiError:
        return False
    return theirs.keys() == ours.keys() and all(torch.equal(value, ours[name]) for name, value in theirs.items())
