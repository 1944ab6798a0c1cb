"""Initialising a network with the weights of another one, which may be for another image size."""

from collections.abc import Mapping, Set

from torch import Tensor

from smalti.core.contracts import Grid
from smalti.core.errors import CheckpointError
from smalti.functional.positions import num_rows, resize_positions, resize_table
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel, inference_weights
from smalti.models.segmenter import Segmenter
from smalti.training.checkpoint import load_weights
from smalti.weights.source import SourceWeights

_NOT_BACKBONE = {
    "mask_token": "the mask token",
    "decoder.": "the decoder",
    "head.": "the head",
    "second_head.": "the second head",
    "aggregation.": "the patch aggregation",
    "fc_norm.": "the norm of pooled patches",
}
_MAY_BE_NEW = _NOT_BACKBONE | {"backbone.cls_token": "[S]", "backbone.norm.": "the last norm"}
_OPTIONAL = ("mask_token", "decoder.", "backbone.norm.", "fc_norm.")
"""Weights that are left out where the network does not have them."""


def init_from_weights(model: MaskedImageModel | ImageClassifier | Segmenter, source: SourceWeights) -> str:
    """Copy weights into `model`, with positions interpolated to its grid. Missing ones keep their random values.

    Mask token, decoder, [S], final norm and head may be missing; a second head and patch aggregation always begin
    anew. A head with other shapes is left out, a decoder with other shapes together with the head behind it, and
    weights that this kind of network does not have.

    Returns:
        A message: which weights were loaded, and which are new.

    Raises:
        UsageError: the configured backbone differs, see `SourceWeights.require_fit`; or its grid is unknown.
        CheckpointError: other weights are missing, unknown or have another shape.
    """
    config, own = model.backbone.config, model.state_dict()
    source.require_fit(config)
    grid = source.grid_for(config)
    weights = resized(source.as_configured(config), grid, config.grid)
    weights = _without_other_decoder(weights, own)
    weights = inference_weights(weights)
    weights = {name: value for name, value in weights.items() if name in own or not name.startswith(_OPTIONAL)}
    heads = {name: value.shape for name, value in weights.items() if name.startswith("head.")}
    if any(name not in own or shape != own[name].shape for name, shape in heads.items()):
        weights = {name: value for name, value in weights.items() if name not in heads}
    missing = own.keys() - weights.keys()
    lacking = sorted(name for name in missing if not name.startswith(tuple(_MAY_BE_NEW)))
    if lacking:
        raise CheckpointError(f"{source.where} has no {lacking[0].removeprefix('backbone.')}", cause="it is not whole")
    load_weights(model, own | weights, source.where)
    line = f"from {source.where}: {_loaded(weights.keys())}"
    line += "" if grid == config.grid else f", for {_by(config.grid)} patches instead of {_by(grid)}"
    line += _initialised(missing)
    unknown = f"; it does not say how many heads it has: {config.num_heads}, as configured"
    return line if source.heads else line + unknown


def _without_other_decoder(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without decoder and head, where these predict from the backbone's output in another way."""
    theirs, ours = ({n: v.shape for n, v in some.items() if n.startswith("decoder.")} for some in (weights, own))
    if theirs == ours:
        return weights
    return {name: value for name, value in weights.items() if not name.startswith(("decoder.", "head."))}


def _loaded(names: Set[str]) -> str:
    count = sum(name.startswith("backbone.") for name in names)
    others = [text for begin, text in _NOT_BACKBONE.items() if any(name.startswith(begin) for name in names)]
    return _and([f"{count} tensors of the backbone", *others])


def _initialised(names: Set[str]) -> str:
    new = [text for begin, text in _MAY_BE_NEW.items() if any(name.startswith(begin) for name in names)]
    return f"; {_and(new)} {'are' if len(new) > 1 else 'is'} new" if new else ""


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _and(parts: list[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def resized(state: Mapping[str, Tensor], old: Grid, new: Grid) -> dict[str, Tensor]:
    """A state dict of grid `old` for grid `new`, by `resize_positions` and `resize_table`."""
    result = dict(state)
    for name, value in state.items():
        if name.endswith("pos_embed"):
            _require_grid(value.shape[1] == 1 + old[0] * old[1], name, value, old)
            result[name] = resize_positions(value, old, new)
        elif name.endswith("relative_position_bias_table"):
            _require_grid(len(value) == num_rows(old), name, value, old)
            result[name] = resize_table(value, old, new)
    return result


def _require_grid(fits: bool, name: str, value: Tensor, grid: Grid) -> None:
    if not fits:
        raise CheckpointError(
            f"{name} has the shape {'x'.join(map(str, value.shape))}",
            cause=f"it is not of a grid of {grid[0]}x{grid[1]} patches",
            fix="name the grid that the weights were trained with",
        )
