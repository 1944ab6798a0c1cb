"""What can be asked of a model: a dataclass for each JSON body, which checks itself, and its JSON schema."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from smalti.core.config import require, setting

MAX_SAMPLES, MAX_GUESSES, MAX_NEAREST = 8, 20, 50
_MAX_SEED = 2**53 - 1
"""The largest integer that JSON of a browser keeps."""

_IMAGE = (
    "a name of /api/model; or an image file in base64, whose stored values are read with the value window of the model;"
    " or, with `data:image/png;base64,` before it, a picture as /api/image answers with, which is seen as it is"
)


def _require_seed(seed: int) -> None:
    require(0 <= seed <= _MAX_SEED, f"a seed of {seed}", f"use 0 to {_MAX_SEED}")


@dataclass(frozen=True)
class Mask:
    """Which patches are masked: those of a list, or as many as `ratio` says, drawn by `seed`."""

    patches: tuple[int, ...] | None = setting(None, "row-major, from 0; null: draw them")
    draw: Literal["blockwise", "random"] = setting("blockwise", "how they are drawn")
    ratio: float = setting(0.4, "share of patches to draw, in (0, 1)")
    seed: int = setting(0, "of the draw")

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, f"a mask ratio of {self.ratio}", "choose one between 0 and 1")
        _require_seed(self.seed)


@dataclass(frozen=True)
class Predict:
    """Predict the masked patches of an image."""

    image: str = setting(dataclasses.MISSING, _IMAGE)
    mask: Mask = setting(Mask(), "which patches are masked")
    guesses: int = setting(5, f"best guesses of each masked patch, 0 to {MAX_GUESSES}")
    samples: int = setting(0, f"alternatives, in which tokens are drawn by their probability, 0 to {MAX_SAMPLES}")
    temperature: float = setting(1.0, "of these draws: below 1 closer to the best guess, in [0.05, 10]")
    seed: int = setting(0, "of these draws")

    def __post_init__(self) -> None:
        require(0 <= self.guesses <= MAX_GUESSES, f"{self.guesses} guesses", f"use 0 to {MAX_GUESSES}")
        require(0 <= self.samples <= MAX_SAMPLES, f"{self.samples} samples", f"use 0 to {MAX_SAMPLES}")
        require(0.05 <= self.temperature <= 10, f"a temperature of {self.temperature}", "use 0.05 to 10")
        _require_seed(self.seed)


@dataclass(frozen=True)
class Attend:
    """What patches of a masked image attend to."""

    image: str = setting(dataclasses.MISSING, _IMAGE)
    mask: Mask = setting(Mask(patches=()), "which patches are masked; none, if it is left out")
    layer: int = setting(1, "block, counted from 1: those of the encoder, then those of the decoder")
    head: int = setting(0, "head, counted from 1; 0: the mean of all")
    patch: int | None = setting(None, "the patch that attends; null: all of them")


@dataclass(frozen=True)
class Nearest:
    """Find the images that are nearest to one by their features."""

    image: str = setting(dataclasses.MISSING, _IMAGE)
    count: int = setting(8, f"how many, 1 to {MAX_NEAREST}")

    def __post_init__(self) -> None:
        require(1 <= self.count <= MAX_NEAREST, f"{self.count} nearest images", f"use 1 to {MAX_NEAREST}")


def schema(annotation: Any) -> dict[str, Any]:
    """The JSON schema of a type that a field may have."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _schema_of_fields(annotation)
    choices = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case types.UnionType | typing.Union:
            return {"anyOf": [schema(choice) for choice in choices]}
        case typing.Literal:
            return {"enum": list(choices)}
        case origin if origin is tuple:
            return {"type": "array", "items": schema(choices[0])}
    named = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
    return {"type": named[annotation]}


def _schema_of_fields(cls: type[Any]) -> dict[str, Any]:
    hints, properties = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        properties[field.name] = schema(hints[field.name]) | {"description": field.metadata["unit"]}
        if not (field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default)):
            properties[field.name]["default"] = field.default
    required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    text = (cls.__doc__ or "").strip()
    found = {"type": "object", "description": text, "properties": properties, "additionalProperties": False}
    return found | ({"required": required} if required else {})
