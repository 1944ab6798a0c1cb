"""Configurations to JSON and back, with errors that name the field."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from smalti.core.config import (
    as_kind,
    did_you_mean,
    from_json,
    kinds,
    leaves,
    require,
    require_storable,
    setting,
    to_json,
)
from smalti.core.errors import UsageError


@dataclass(frozen=True)
class Square:
    side: float = setting(1.0, "metres", "Euclid")


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Drawing:
    title: str
    shape: Square | Circle = Square()
    frame: Square | None = None
    size: tuple[int, int] = (3, 4)
    weights: tuple[float, ...] = ()
    colour: Literal["red", "blue"] = "red"
    copies: int | None = None
    signed: bool = False


@dataclass(frozen=True)
class Framed:
    frame: Square


EVERYTHING = Drawing(
    "a",
    shape=Circle(2.0),
    frame=Square(0.5),
    size=(1, 2),
    weights=(0.1, 0.2, 0.3),
    colour="blue",
    copies=4,
    signed=True,
)


@pytest.mark.parametrize("config", [Drawing("plain"), EVERYTHING])
def test_a_configuration_survives_json(config: Drawing) -> None:
    assert from_json(Drawing, json.loads(json.dumps(to_json(config)))) == config


def test_missing_fields_take_their_defaults() -> None:
    assert from_json(Drawing, {"title": "b"}) == Drawing("b")


def test_an_integer_is_a_float_but_not_the_other_way() -> None:
    assert from_json(Square, {"side": 3}).side == 3.0
    assert isinstance(from_json(Square, {"side": 3}).side, float)
    with pytest.raises(UsageError, match=r"config.size\[0\] is 1.5, expected int"):
        from_json(Drawing, {"title": "", "size": [1.5, 2]})


def test_a_union_is_chosen_by_kind() -> None:
    assert from_json(Drawing, {"title": "", "shape": {"kind": "Circle", "radius": 3.0}}).shape == Circle(3.0)
    assert from_json(Drawing, {"title": "", "frame": {"kind": "Square"}}).frame == Square()
    assert from_json(Drawing, {"title": "", "frame": None}).frame is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"titel": "x"}, "unknown field config.titel; did you mean 'title'?"),
        ({"zzz": 1}, "unknown field config.zzz"),
        ({"title": 3}, "config.title is 3, expected str"),
        ({"signed": 1}, "config.signed is 1, expected bool"),
        ({"copies": True}, "config.copies is True, expected int"),
        ({"copies": "4"}, "config.copies is '4', expected int"),
        ({"colour": "green"}, "config.colour is 'green', expected one of red, blue"),
        ({"shape": {"kind": "Star"}}, "config.shape has kind 'Star'"),
        ({"shape": {"radius": 1.0}}, "config.shape has kind None"),
        ({"shape": "Circle"}, "config.shape is 'Circle', expected the fields of"),
        ({"shape": {"kind": "Circle", "radios": 1.0}}, "unknown field config.shape.radios; did you mean 'radius'?"),
        ({"weights": [0.1, "x"]}, r"config.weights\[1\] is 'x', expected float"),
        ({"size": [1]}, "config.size"),
        ({"size": [1, 2, 3]}, "config.size"),
        ({"size": 7}, "config.size is 7"),
        ({"weights": 0.5}, "config.weights is 0.5"),
        ({"weights": None}, "config.weights is None"),
    ],
)
def test_a_wrong_field_is_a_usage_error_that_names_it(fields: dict[str, Any], message: str) -> None:
    """J01."""
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        from_json(Drawing, {"title": "x"} | fields)


def test_a_missing_field_without_default_is_a_usage_error_that_names_it() -> None:
    with pytest.raises(UsageError, match="title"):
        from_json(Drawing, {"copies": 1})


def test_fields_of_another_class_are_refused_even_where_they_would_fit() -> None:
    with pytest.raises(UsageError, match="Circle"):
        from_json(Square, {"kind": "Circle"})


def test_a_field_of_one_class_is_read_whatever_the_class_was_called() -> None:
    assert from_json(Framed, {"frame": {"kind": "Quadrangle", "side": 3.0}}) == Framed(Square(3.0))


@pytest.mark.parametrize("value", [None, [], "Drawing", 3])
def test_what_is_no_object_is_no_configuration(value: Any) -> None:
    with pytest.raises(UsageError, match=r"config is .*, expected the fields of Drawing"):
        from_json(Drawing, value)


def test_a_class_that_no_annotation_names_cannot_be_built() -> None:
    with pytest.raises(UsageError, match="has kind 'Path'"):
        from_json(Drawing, {"title": "", "shape": {"kind": "Path"}})


@dataclass(frozen=True)
class RoundedSquare:
    side: float = 2.0
    corner: float = 0.1


@dataclass(frozen=True)
class Plan:
    shape: Square | RoundedSquare | Circle = Square()
    only: Square = Square()


def test_the_kinds_of_a_part_are_those_that_its_annotation_names() -> None:
    assert kinds(Plan, "shape") == {"square": Square, "rounded-square": RoundedSquare, "circle": Circle}
    assert kinds(Plan, "only") == {"square": Square}
    assert kinds(Drawing, "frame") == {"square": Square}
    assert kinds(Drawing, "size") == {}


def test_another_kind_keeps_what_both_have() -> None:
    assert as_kind(Square(5.0), RoundedSquare) == RoundedSquare(5.0, 0.1)
    assert as_kind(RoundedSquare(5.0, 0.3), Circle) == Circle()
    assert as_kind(Circle(2.0), Circle) == Circle(2.0)


def test_did_you_mean_only_what_is_close() -> None:
    assert did_you_mean("learning_rat", ["learning_rate", "steps"]) == "did you mean 'learning_rate'?"
    assert did_you_mean("xyz", ["learning_rate", "steps"]) == ""


def test_leaves_are_every_field_with_unit_reference_and_default() -> None:
    found = {leaf.name: leaf for leaf in leaves(Drawing("t", shape=Square(2.0)))}
    assert set(found) == {"title", "shape", "shape.side", "frame", "size", "weights", "colour", "copies", "signed"}
    shape = found["shape"]
    assert (shape.value, shape.unit, shape.default) == ("square", "of square, circle", "square")
    side = found["shape.side"]
    assert (side.value, side.unit, side.paper, side.default) == (2.0, "metres", "Euclid", 1.0)


def test_require_raises_only_where_the_condition_fails() -> None:
    require(True, "never said")
    with pytest.raises(UsageError, match="what; how"):
        require(False, "what", "how")


@dataclass(frozen=True)
class Star:
    """A part from outside: no annotation names it."""

    points: int = 5


@dataclass(frozen=True)
class RoundSquare(Square):
    """Another class in place of the one that is named."""


UNTYPED: Any = Drawing
UNTYPED_SQUARE: Any = Square
"""Built with values that its annotations do not allow."""


@pytest.mark.parametrize(
    "config", [EVERYTHING, Framed(Square(1)), Framed(Square(np.float64(2))), UNTYPED("a", size=[1, 2])]
)
def test_what_can_be_read_back_can_be_stored(config: Drawing | Framed) -> None:
    require_storable(config)
    read_back = from_json(type(config), json.loads(json.dumps(to_json(config))))
    assert to_json(read_back) == json.loads(json.dumps(to_json(config)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (UNTYPED("a", shape=Star()), "shape is a Star, .*; what is read back there is one of: square, circle; .* in"),
        (Framed(RoundSquare()), "frame is a RoundSquare, and a run folder cannot name it"),
        (UNTYPED(Path("a")), r"title is PosixPath\('a'\), expected str"),
        (Framed(UNTYPED_SQUARE(np.float32(1))), r"frame.side is np.float32\(1.0\), expected float"),
        (UNTYPED("a", copies=2.0), "copies is 2.0, expected int"),
        (UNTYPED("a", colour="green"), "colour is 'green', expected one of red, blue"),
    ],
)
def test_what_could_not_be_read_back_is_refused_by_its_name(config: Drawing | Framed, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require_storable(config)
