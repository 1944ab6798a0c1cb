"""Loading the weights of a backbone into one for another image size."""

from collections.abc import Mapping

from torch import Tensor

from smalti.core.contracts import Grid
from smalti.core.errors import CheckpointError
from smalti.functional.positions import num_rows, resize_positions, resize_table
from smalti.models.vit import VisionTransformer


def load_resized(backbone: VisionTransformer, state: Mapping[str, Tensor], grid: Grid) -> None:
    """Load the weights of a backbone whose patch grid was `grid`; positions are interpolated to the new grid.

    Raises:
        CheckpointError: the shapes of the weights do not belong to this grid.
    """
    backbone.load_state_dict(resized(state, grid, backbone.config.grid))


def resized(state: Mapping[str, Tensor], old: Grid, new: Grid) -> dict[str, Tensor]:
    """A state dict of grid `old` for grid `new`, by `resize_positions` and `resize_table`."""
    result = dict(state)
    for name, value in state.items():
        if name.endswith("pos_embed"):
            _require(value.shape[1] == 1 + old[0] * old[1], name, value, old)
            result[name] = resize_positions(value, old, new)
        elif name.endswith("relative_position_bias_table"):
            _require(len(value) == num_rows(old), name, value, old)
            result[name] = resize_table(value, old, new)
    return result


def _require(fits: bool, name: str, value: Tensor, grid: Grid) -> None:
    if not fits:
        raise CheckpointError(
            f"{name} has the shape {'x'.join(map(str, value.shape))}",
            cause=f"it is not of a grid of {grid[0]}x{grid[1]} patches",
            fix="name the grid that the weights were trained with",
        )
