"""The help of a verb: a line for every flag, from what its field says of itself."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from smalti.core.config import Field, did_you_mean, leaves
from smalti.core.errors import UsageError

_FIRST = ("data", "tokenizer", "init", "out", "resume", "plan.steps", "plan.batch-size", "optimiser.lr", "masking",
          "decoder", "task", "recipe", "epochs", "device")  # fmt: skip
"""The flags that people need, in this order; a verb with many flags lists the others only on `--help all`."""
_MANY = 30
_LEFT, _WIDTH = 34, 100
_NAMES = {int: "INT", float: "FLOAT", str: "TEXT", type(None): "None"}


class Flag(NamedTuple):
    """A flag as help shows it.

    Attributes:
        name: `plan.batch-size`, without its dashes; an argument that needs no flag in capitals.
        values: what follows it, as `INT` or `cosine|constant`; empty: it is switched on or off.
        text: what it is for, its unit, and the reference of its value.
        default: its value where it is not given; empty: none.
    """

    name: str
    values: str
    text: str
    default: str = ""

    @property
    def is_argument(self) -> bool:
        """Whether it is given by its place, and not by its name."""
        return self.name.isupper()

    @property
    def part(self) -> str:
        """The part of the configuration that it belongs to; empty: the configuration itself."""
        return self.name.partition(".")[0] if "." in self.name else ""

    def lines(self) -> list[str]:
        """The flag and its values, and beside them what it is for."""
        dashed = self.name if self.is_argument else f"--{self.name}"
        if not self.values:
            before, dot, last = self.name.rpartition(".")
            dashed = f"--{before}{dot}[no-]{last}" if self.default else dashed
        left = f"  {dashed} {self.values}".rstrip()
        text = f"{self.text} (default: {self.default})" if self.default else self.text
        right = textwrap.wrap(text, _WIDTH - _LEFT, break_long_words=False, break_on_hyphens=False)
        if len(left) >= _LEFT:
            return [left, *(" " * _LEFT + line for line in right)]
        return [(left if n == 0 else "").ljust(_LEFT) + line for n, line in enumerate(right)]


ALWAYS = (Flag("json", "", "the results as one line of JSON, the last one"), Flag("debug", "", "where an error began"))
OF_TRAINING = (
    Flag("resume", "RUN", "go on with this run, bit for bit; with it no RECIPE is given"),
    Flag("allow-inexact", "", "with --resume: also with settings, threads or processes that change the bits"),
)


class Page(NamedTuple):
    """The help of a command.

    Attributes:
        command: `pretrain nano`, or `evaluate MODEL IMAGES`.
        about: what it does, in a sentence.
        parts: what each part of the configuration is, in a sentence.
    """

    command: str
    about: str
    flags: tuple[Flag, ...]
    parts: dict[str, str]

    def text(self, wanted: str = "") -> str:
        """The page as it is printed.

        Args:
            wanted: `all`, or a part whose flags are to be listed; empty: the flags that people need.

        Raises:
            UsageError: there is no such part.
        """
        names = list(dict.fromkeys(flag.part for flag in self.flags if flag.part))
        if wanted not in ("", "all", *names):
            fix = did_you_mean(wanted, names) or f"there are: all{''.join(', ' + name for name in names)}"
            raise UsageError(f"smalti {self.command} has no part '{wanted}' to give help on", fix=fix)
        if wanted in names:
            blocks = [self._part(wanted)]
        elif wanted == "all" or len(self.flags) <= _MANY:
            blocks = [self._listed([flag for flag in self.flags if not flag.part]), *map(self._part, names)]
        else:
            counts = [f"{name} ({sum(flag.part == name for flag in self.flags)})" for name in names]
            typed = self.command.removesuffix(" RECIPE").removesuffix(" DATA [--recipe RECIPE]")
            more = textwrap.fill(f"parts: {', '.join(counts)}", _WIDTH, break_on_hyphens=False)
            more += f"\n\nall {len(self.flags)} flags: smalti {typed} --help all; those of a part: --help {names[0]}\n"
            blocks = [self._listed(self._first()), more]
        usage = f"usage: smalti {self.command} [--FLAG VALUE ...]\n"
        return "\n".join([usage, *([] if wanted in names else [textwrap.fill(self.about, _WIDTH) + "\n"]), *blocks])

    def _first(self) -> list[Flag]:
        own = [flag for flag in self.flags if not flag.part]
        if len(own) <= _MANY // 2:
            return own
        listed = {flag.name: flag for flag in self.flags}
        return [flag for flag in own if flag.is_argument] + [listed[name] for name in _FIRST if name in listed]

    def _part(self, name: str) -> str:
        about = textwrap.fill(f"{name}: {self.parts.get(name, '')}", _WIDTH)
        return f"{about}\n{self._listed([flag for flag in self.flags if flag.part == name])}"

    def _listed(self, flags: list[Flag]) -> str:
        return "".join(line + "\n" for flag in flags for line in flag.lines())


class HelpAskedError(Exception):
    """Help was asked for, and here it is; raised so that nothing is run."""

    def __init__(self, page: Page, wanted: str) -> None:
        super().__init__(page.command)
        self.page, self.wanted = page, wanted


def take_help(arguments: list[str]) -> str | None:
    """Remove `--help` and the part that follows it, which is returned; empty: none follows; None: not asked for."""
    place = next((n for n, one in enumerate(arguments) if one.partition("=")[0] in ("-h", "--help")), None)
    if place is None:
        return None
    flag, *rest = arguments[place:]
    word = flag.partition("=")[2] or next((one for one in rest[:1] if not one.startswith("-")), "")
    del arguments[place : place + 1 + (bool(word) and "=" not in flag)]
    return word


def page_of(cls: type[Any], default: Any, command: str, beside: tuple[Flag, ...] = ()) -> Page:
    """The help of a configuration.

    Args:
        default: the configuration whose values are shown; None: those of the class.
        command: what is typed before its flags.
        beside: flags and arguments of the command that are no fields.
    """
    needed = [] if default is not None else [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    said = {} if not needed else dict(_docstrings(cls))
    several = [f.name for f in needed if typing.get_origin(typing.get_type_hints(cls)[f.name]) is tuple]
    arguments = [Flag(f.name.upper(), "..." if f.name in several else "", said.get(f.name, "")) for f in needed]
    start = cls if default is None else default
    short = dataclasses.is_dataclass(getattr(cls, "data", None))
    fields = [_flag(field, short) for field in leaves(start) if not _is_derived(field)]
    parts = {f.name: getattr(start, f.name) for f in dataclasses.fields(cls) if f not in needed}
    return Page(
        " ".join([command, *(f"{flag.name}{flag.values}" for flag in arguments)]),
        about(sys.modules[cls.__module__]),
        tuple(sorted((*arguments, *fields, *beside, *ALWAYS), key=lambda flag: not flag.is_argument)),
        {name.replace("_", "-"): _first(type(part)) for name, part in parts.items() if dataclasses.is_dataclass(part)},
    )


def about(run: types.ModuleType) -> str:
    """What a verb does, by the docstring of its module."""
    text = re.sub(r"^`[^`]*`: ", "", _first(run))
    return text[:1].upper() + text[1:]


def _is_derived(field: Field) -> bool:
    """Whether it is a part that is not known yet, and set by what it is derived from."""
    return field.value is None and any(map(dataclasses.is_dataclass, typing.get_args(field.annotation)))


def _flag(field: Field, short: bool) -> Flag:
    name = "data" if short and field.name == "data.path" else field.name.replace("_", "-")
    if dataclasses.is_dataclass(field.annotation):
        return Flag(name, field.unit.removeprefix("of ").replace(", ", "|"), _first(field.annotation), field.value)
    text = f"{field.unit} [{field.paper}]" if field.paper else field.unit
    return Flag(name, _values(field.annotation), text, _shown(field.value))


def _values(annotation: Any) -> str:
    """What a flag of this type is followed by."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return ""
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (types.UnionType, typing.Union):
        return "|".join(_values(one) for one in inner)
    if origin is tuple:
        return " ".join("..." if one is Ellipsis else _values(one) for one in inner)
    return _NAMES[annotation]


def _shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else str(value)
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)


def _first(documented: Any) -> str:
    """The first sentence of a docstring, or all of its first paragraph where that is a sentence without an end."""
    paragraph = " ".join(inspect.cleandoc(documented.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].rstrip(".")


def _docstrings(cls: type[Any]) -> Iterator[tuple[str, str]]:
    """(field, the string below it in the source) of a class and of those it is derived from."""
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = inspect.getsource(base)
        except OSError:  # installed without sources
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body
        for field, below in pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    yield name, " ".join(text.split()).rstrip(".")
