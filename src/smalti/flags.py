"""Flags to a configuration: every field has one. This is the only import of tyro."""

import contextlib
import dataclasses
import io
import itertools
import re
import typing
from dataclasses import replace
from typing import Any, TypeVar

from smalti.core.config import as_kind, did_you_mean, kinds, leaves, require_finite
from smalti.core.errors import UsageError
from smalti.help import Flag, HelpAskedError, page_of, take_help

T = TypeVar("T")


class UnknownFlagError(UsageError):
    """A flag that a verb does not have; the command line looks for another verb that has it."""

    def __init__(self, flag: str, hint: str, verb: str) -> None:
        self.flag, self.hint = flag, hint
        super().__init__(f"unknown option '{flag}'", fix=hint or f"see smalti {verb} --help")


OTHER_FLAGS = ("--resume", "--allow-inexact", "--json", "--debug", "--data")


def parse(cls: type[T], default: T | None, arguments: list[str], verb: str, beside: tuple[Flag, ...] = ()) -> T:
    """Override the fields of a configuration with flags. `--data X` is short for `--data.path X`.

    Args:
        beside: other flags of the verb, which its help shows too.

    Raises:
        UsageError: an unknown flag or a value of the wrong type.
        HelpAskedError: as in `parse_known`.
    """
    config, unknown = parse_known(cls, default, arguments, verb, beside)
    refuse(unknown, flags_of(cls, default), verb)
    return config


def parse_known(
    cls: type[T], default: T | None, arguments: list[str], verb: str, beside: tuple[Flag, ...] = ()
) -> tuple[T, list[str]]:
    """The configuration, and what of the arguments it has no field for.

    Raises:
        HelpAskedError: there is a `--help` among the arguments.
    """
    import tyro

    flags = _data_flags(cls, arguments)
    wanted = take_help(flags)
    default = default if default is None else _with_kinds(default, flags)
    if wanted is not None:
        raise HelpAskedError(page_of(cls, default, verb, beside), wanted)
    printed = io.StringIO()
    settings = (tyro.conf.AvoidSubcommands, tyro.conf.PositionalRequiredArgs)
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            config, unknown = tyro.cli(
                cls,
                prog=f"smalti {verb}",
                args=flags,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                config=settings,
            )
    except SystemExit:
        raise UsageError(_complaint(printed.getvalue()), fix=f"see smalti {verb} --help") from None
    require_finite(config)
    return config, unknown


def _data_flags(cls: type[Any], arguments: list[str]) -> list[str]:
    """The arguments with the flags of DATA, `--data` and `--data.X`, as the configuration names them.

    They are the same in every verb: fields of `data` in one that trains, and fields of its own, or its positional
    argument, in another.
    """
    if dataclasses.is_dataclass(getattr(cls, "data", None)):
        return [re.sub(r"^--data(?==|$)", "--data.path", flag) for flag in arguments]
    own = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls)}
    positional = own["data"].default is dataclasses.MISSING if "data" in own else "images" in own
    flags = []
    for flag in arguments:
        name, equals, value = flag.partition("=")
        if name == "--data" and positional:
            flags += [value] if equals else []
        elif name.startswith("--data.") and name[7:] in own:
            flags.append(f"--{flag[7:]}")
        else:
            flags.append(flag)
    return flags


def without_foreign_flags(message: str, cls: type[Any]) -> str:
    """A message without the advice to use a flag of images (`--data...`) or of steps (`--plan...`) that `cls` has not.

    The message is of a reader of images, which does not know for which verb it reads.
    """
    own = {field.name: getattr(cls, field.name, None) for field in dataclasses.fields(cls)}
    known = {f"--data.{name}" for name in own} | ({"--data"} if own.keys() & {"data", "images"} else set())
    for part, value in own.items():
        if dataclasses.is_dataclass(value):
            known |= {f"--{part}.{field.name}" for field in dataclasses.fields(value)}
    for flag in re.findall(r"--(?:data|plan)(?:\.[a-z][a-z-]*)?", message):
        if flag.replace("-", "_").replace("__", "--", 1) not in known:
            message = re.sub(rf"(?:, or|; or|;|:) [^;:,]*{re.escape(flag)}(?![a-z-])[^;,]*", "", message)
    return message


def _with_kinds(config: T, flags: list[str], prefix: str = "--") -> T:
    """The configuration with the kinds of parts that `--PART KIND` names; these flags are taken out."""
    for field in dataclasses.fields(typing.cast(Any, config)):
        part, flag = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(part):
            choices = kinds(type(config), field.name)
            name = take_value(flags, flag, "KIND") if len(choices) > 1 else None
            if name is not None and name not in choices:
                raise UsageError(f"{flag} is '{name}'", fix=f"there are: {', '.join(choices)}")
            chosen = part if name is None else as_kind(part, choices[name])
            config = replace(typing.cast(Any, config), **{field.name: _with_kinds(chosen, flags, f"{flag}.")})
    return config


def refuse(unknown: list[str], known: list[str], verb: str) -> None:
    """Raise a UsageError that names the first unknown flag, if there is one, and the known flag that is nearest."""
    if unknown:
        name = next((flag for flag in unknown if flag.startswith("-")), unknown[0]).split("=")[0]
        raise UnknownFlagError(name, did_you_mean(name, known), verb)


def flags_of(cls: type[Any], default: Any) -> list[str]:
    """Every flag that `smalti` knows for a configuration."""
    names = [field.name for field in leaves(cls if default is None else default)]
    return ["--" + name.replace("_", "-") for name in names] + list(OTHER_FLAGS)


def _complaint(printed: str) -> str:
    """The first paragraph inside the box that tyro draws, without the types of missing arguments."""
    lines = [line.strip(" │") for line in printed.splitlines()]
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"[-─╭╮╰╯]{5,}", line)]
    inside = itertools.takewhile(bool, lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else ["wrong arguments"])
    text = " ".join(line.replace("(required)", "") for line in inside if not re.fullmatch(r"\[*[A-Z ]+\]*", line))
    return text.strip().rstrip(".")


def take_flag(arguments: list[str], flag: str) -> bool:
    """Remove a flag, and say whether it was there."""
    present = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return present


def take_value(arguments: list[str], flag: str, what: str = "FOLDER") -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` and return the value; the last one, where it is given several times."""
    found = None
    while (place := next((n for n, one in enumerate(arguments) if one.partition("=")[0] == flag), None)) is not None:
        _, equals, value = arguments[place].partition("=")
        given = value if equals else "".join(arguments[place + 1 : place + 2])
        if not given or given.startswith("--"):
            raise UsageError(f"no value for {flag}", fix=f"use {flag} {what}")
        del arguments[place : place + (1 if equals else 2)]
        found = given
    return found
