"""A masked image model that starts from the weights of another."""

from smalti.core.errors import CheckpointError
from smalti.models.foreign.source import Source
from smalti.models.mim import MaskedImageModel
from smalti.models.resolution import resized
from smalti.training.checkpoint import load_weights

_MAY_BE_NEW = {
    "mask_token": "the mask token",
    "head.": "the head",
    "backbone.cls_token": "[S]",
    "backbone.norm.": "the last norm",
}


def start_from(model: MaskedImageModel, source: Source) -> str:
    """Copy the weights into `model`, resized to its grid. What is missing stays as it was drawn.

    A mask token, [S], the last norm and the head may be missing; a head of another vocabulary is left out.

    Returns:
        A line for people: what came, and what is new.

    Raises:
        UsageError: the configured backbone is another one; see `Source.require_fit`.
        CheckpointError: weights are missing, are too many or have another shape.
    """
    config, own = model.backbone.config, model.state_dict()
    source.require_fit(config)
    grid = source.grid_for(config)
    weights = resized(source.as_configured(config), grid, config.grid)
    if "head.bias" in weights and weights["head.bias"].shape != own["head.bias"].shape:
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    missing = own.keys() - weights.keys()
    if not all(name.startswith(tuple(_MAY_BE_NEW)) for name in missing):
        lacking = min(name for name in missing if not name.startswith(tuple(_MAY_BE_NEW)))
        raise CheckpointError(f"{source.where} has no {lacking.removeprefix('backbone.')}", cause="it is not whole")
    load_weights(model, own | weights, source.where)
    fresh = [text for begin, text in _MAY_BE_NEW.items() if any(name.startswith(begin) for name in missing)]
    kept = [text for begin, text in list(_MAY_BE_NEW.items())[:2] if any(name.startswith(begin) for name in weights)]
    count = sum(name.startswith("backbone.") for name in weights)
    came = _and([f"{count} tensors of the backbone", *kept])
    sizes = "" if grid == config.grid else f", for {_by(config.grid)} patches instead of {_by(grid)}"
    heads = "" if source.heads else f"; it does not say how many heads it has: {config.num_heads}, as configured"
    new = f"; {_and(fresh)} {'are' if len(fresh) > 1 else 'is'} new" if fresh else ""
    return f"from {source.where}: {came}{sizes}{new}{heads}"


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _and(parts: list[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
