"""Configurations are frozen dataclasses; this module turns them into JSON and back, and documents their fields.

Only the classes that a field's annotation names can be built from JSON, so a file can never choose code. A field that
may hold one of several classes stores the class name under "kind"; the name is looked up in the annotation.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from smalti.core.errors import UsageError

T = TypeVar("T")


Resume: TypeAlias = Literal["same", "free", "free_without_rollback", "digest"]
"""Whether a field may have another value when a run goes on, and the run still ends in the same bits.

`digest`: a place, whose content is compared; where the run has not recorded its digest, the place has to be the same.
"""


def setting(default: Any, unit: str = "", paper: str = "", resume: Resume = "same") -> Any:
    """A dataclass field with a unit and, where the value comes from one, a reference."""
    return field(default=default, metadata={"unit": unit, "paper": paper, "resume": resume})


def part(default: Any, papers: Mapping[str, str]) -> Any:
    """A dataclass field that is a configuration itself, some fields of which have other references in this place.

    Args:
        papers: the references of its fields, by name; the others have none here.
    """
    return field(default=default, metadata={"papers": papers})


def require(condition: bool, what: str, fix: str = "") -> None:
    """Raise a UsageError unless `condition` holds; for the `__post_init__` of configurations."""
    if not condition:
        raise UsageError(what, fix=fix)


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": type(config).__name__} | fields
    if isinstance(config, tuple | list):
        return [to_json(item) for item in config]
    return config


def from_json(annotation: type[T], value: Any, where: str = "config") -> T:
    """Build what `annotation` names from JSON values.

    "kind" is compared at the top, and chooses where a field may hold one of several classes. Elsewhere the annotation
    says which class it is, whatever it was called when the JSON was written.

    Raises:
        UsageError: a field is unknown or has a value of the wrong type; the message names it.
    """
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        kind = value.get("kind", annotation.__name__)
        require(kind == annotation.__name__, f"{where} is a {kind}, expected a {annotation.__name__}")
    return typing.cast(T, _build(annotation, value, where))


def _build(annotation: Any, value: Any, where: str) -> Any:
    origin, choices = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return _build(_choose(choices, value, where), value, where)
    if dataclasses.is_dataclass(annotation):
        return _build_dataclass(typing.cast(type[Any], annotation), value, where)
    if origin is tuple:
        return _build_tuple(choices, value, where)
    if origin is typing.Literal:
        require(value in choices, f"{where} is {value!r}, expected one of {', '.join(map(str, choices))}")
        return value
    if annotation is float and type(value) is int:
        return float(value)
    require(not isinstance(value, float) or math.isfinite(value), f"{where} is {value}", "use a finite number")
    matches = value is None if annotation is type(None) else type(value) is annotation
    require(matches, f"{where} is {value!r}, expected {getattr(annotation, '__name__', annotation)}")
    return value


def _build_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    require(isinstance(value, list | tuple), f"{where} is {value!r}, expected a list")
    expected = items[:1] * len(value) if items[1:] == (Ellipsis,) else items
    require(len(value) == len(expected), f"{where} has {len(value)} values, expected {len(expected)}")
    return tuple(_build(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(expected, value, strict=True)))


def _choose(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        return type(None)
    if isinstance(value, dict):
        kind, names = value.get("kind"), [getattr(c, "__name__", "") for c in choices]
        require(kind in names, f"{where} has kind {kind!r}, expected one of {', '.join(names)}")
        return choices[names.index(kind)]
    is_list = isinstance(value, list | tuple)
    usual = next(c for c in choices if c is not type(None) and (typing.get_origin(c) is tuple) == is_list)
    return next((c for c in choices if c is type(value)), usual)


def _build_dataclass(cls: type[Any], value: Any, where: str) -> Any:
    require(isinstance(value, dict), f"{where} is {value!r}, expected the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    names = [f.name for f in fields]
    given = {name: item for name, item in value.items() if name != "kind"}
    for name in given:
        require(name in names, f"unknown field {where}.{name}", did_you_mean(name, names))
    for f in fields:
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        require(optional or f.name in given, f"{where}.{f.name} is missing")
    return cls(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in given.items()})


def require_storable(config: Any, prefix: str = "") -> None:
    """Check that a configuration can be read back from JSON: a run that cannot could be neither loaded nor resumed.

    Raises:
        UsageError: a part is of a class that its field does not name, or a value of another type than its field.
    """
    cls = type(config)
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        value, name = getattr(config, f.name), prefix + f.name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            known, kind = kinds(cls, f.name), type(value).__name__
            if type(value) not in known.values():
                raise UsageError(
                    f"{name} is a {kind}, and a run folder cannot name it",
                    cause=f"what is read back there is one of: {', '.join(known)}",
                    fix=f"train with {kind} as docs/own-parts.md shows, or name it in the annotation of"
                    f" {cls.__name__}.{f.name} in {cls.__module__}",
                )
            require_storable(value, f"{name}.")
        else:
            _build(hints[f.name], _through_json(value), name)


def _through_json(value: Any) -> Any:
    """A value as JSON gives it back, so a float64 of NumPy as a float; what JSON cannot hold stays as it is."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return value


def kinds(cls: type[Any], field_name: str) -> dict[str, type[Any]]:
    """The configurations that a field may hold, by name: `soft-tokens` for SoftTokens."""
    annotation = typing.get_type_hints(cls)[field_name]
    choices = [c for c in typing.get_args(annotation) or (annotation,) if dataclasses.is_dataclass(c)]
    return {kind_name(c): c for c in choices if isinstance(c, type)}


def kind_name(cls: type[Any] | str) -> str:
    """What a configuration, or the class of this name, is called on the command line."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", cls if isinstance(cls, str) else cls.__name__).lower()


def as_kind(config: Any, kind: type[T]) -> T:
    """A configuration of class `kind`, in which the fields that `config` also has keep their values."""
    common = {f.name for f in dataclasses.fields(config)}
    own = dataclasses.fields(typing.cast(Any, kind))
    return kind(**{f.name: getattr(config, f.name) for f in own if f.name in common})


def require_finite(config: Any) -> None:
    """Raise a UsageError where a field is infinite or NaN: a comparison with NaN is false, so checks would pass it."""
    for leaf in leaves(config):
        for value in leaf.value if isinstance(leaf.value, tuple) else (leaf.value,):
            flag = leaf.name.replace("_", "-")
            require(not isinstance(value, float) or math.isfinite(value), f"--{flag} is {value}", "use a finite number")


def did_you_mean(name: str, known: list[str]) -> str:
    """The text `did you mean 'x'?`, or an empty one where no known name is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


_METADATA = {"unit": "", "paper": "", "resume": "same"}


@dataclass(frozen=True)
class Field:
    """One leaf of a configuration, as `smalti explain` prints it.

    Attributes:
        annotation: the type of its values; of a nested configuration the class that it is.
    """

    name: str
    value: Any
    unit: str
    paper: str
    default: Any
    resume: Resume = "same"
    annotation: Any = None


def leaves(config: Any, prefix: str = "", papers: Mapping[str, str] | None = None) -> Iterator[Field]:
    """Every leaf field of a configuration, depth first, with the default of its class.

    A nested configuration that may be one of several classes also yields a leaf with the name of its class.

    Args:
        config: a configuration, or a class, whose leaves then have their defaults; fields without one are left out.
        papers: references in place of those of the fields (`part`).
    """
    cls = config if isinstance(config, type) else type(config)
    annotations = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        value = getattr(config, f.name, dataclasses.MISSING)
        if dataclasses.is_dataclass(value):
            choices, usual = kinds(cls, f.name), kind_name(type(f.default))
            if len(choices) > 1:
                of = f"of {', '.join(choices)}"
                yield Field(prefix + f.name, kind_name(type(value)), of, "", usual, annotation=type(value))
            yield from leaves(value, f"{prefix}{f.name}.", f.metadata.get("papers"))
        elif value is not dataclasses.MISSING:
            default = None if f.default is dataclasses.MISSING else f.default
            unit, paper, resume = (f.metadata.get(key, none) for key, none in _METADATA.items())
            paper = paper if papers is None else papers.get(f.name, "")
            yield Field(prefix + f.name, value, unit, paper, default, resume, annotations[f.name])
