"""The reference pages of the site, made of the code while it is built: verbs, parts, recipes, the public API."""

import ast
import importlib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, cast

import smalti
from smalti import cli
from smalti.core.config import kind_name, kinds, leaves
from smalti.find_recipe import load_recipe, recipe_names

Config = type[Any]
_VERB_FLAGS = {
    "_train": ("--resume RUN", "go on with a training run; with `--allow-inexact` also under other settings"),
    "_tokenize": ("--recipe RECIPE", "the recipe that says how images are seen"),
}


def pages() -> dict[str, str]:
    """The Markdown of every page, by its place in the site."""
    return {
        "reference/verbs.md": "\n\n".join(["# Verbs", _VERBS_INTRODUCTION, *map(_verb, cli.VERBS)]),
        "reference/parts.md": "\n\n".join(["# Parts", _PARTS_INTRODUCTION, *map(_part, sorted(_parts(), key=_name))]),
        "reference/recipes.md": "\n\n".join(["# Recipes", _RECIPES_INTRODUCTION, *map(_recipe, recipe_names())]),
        "reference/api.md": _api(),
    }


_VERBS_INTRODUCTION = (
    "Every verb takes `--json` (one JSON object as the last line) and `--debug` (the traceback of an error). A field"
    " that is a [part](parts.md) is set by `--PART KIND`, where there are several kinds, and `--PART.FIELD VALUE`."
    " Defaults are those of the classes; a [recipe](recipes.md) has its own, and `smalti explain RECIPE` prints them."
)
_PARTS_INTRODUCTION = (
    "A part is a frozen dataclass that checks itself. From Python it is an argument, as `ViT(depth=12)`; on the command"
    " line its fields are flags below the name that the part has in its verb, as `--backbone.depth 12`."
)
_RECIPES_INTRODUCTION = (
    "What each recipe sets otherwise than the classes do. `smalti explain RECIPE` prints all fields, with the overrides"
    " that you give, and what the network and its schedules come to."
)


def _name(cls: Config) -> str:
    return cls.__name__


def _config(verb: str) -> Config:
    module, config, _ = cli.VERBS[verb]
    return cast(Config, getattr(importlib.import_module(f"smalti.runs.{module}"), config))


def _verb(verb: str) -> str:
    module, _, call = cli.VERBS[verb]
    usage, does = _usage(verb)
    blocks = [f"## {verb}", f"```text\nsmalti {usage}\n```", f"{does}."]
    if verb != "explain":
        extra = [_VERB_FLAGS[call.__name__]] if call.__name__ in _VERB_FLAGS else []
        blocks.append(_table(_config(verb), "--", [f"| `{flag}` | | | {what} |" for flag, what in extra]))
    returned = _section(inspect.getdoc(importlib.import_module(f"smalti.runs.{module}").main) or "", "Returns")
    return "\n\n".join([*blocks, *([f"**`--json`:** {returned}"] if returned else [])])


def _usage(verb: str) -> tuple[str, str]:
    """How a verb is written and what it does, as `smalti --help` says."""
    found = re.search(rf"^  ({verb}(?: .*?)?)  +(\S.*)$", cli.USAGE.replace("{{", "{").replace("}}", "}"), re.M)
    assert found is not None, f"smalti --help does not say what {verb} does"
    return found[1], found[2]


def _section(doc: str, title: str) -> str:
    """The text of a section of a docstring, empty where there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", doc, re.M)
    return " ".join(textwrap.dedent(found[1]).split()) if found else ""


def _part(cls: Config) -> str:
    lines = [f"## {cls.__name__}", _prose(inspect.getdoc(cls) or "")]
    verbs: dict[str, list[str]] = {}
    for verb in cli.VERBS:
        for flag in _places(verb, cls):
            verbs.setdefault(flag, []).append(verb)
    where = "; ".join(f"`--{flag}` of {', '.join(users)}" for flag, users in verbs.items())
    return "\n\n".join([*lines, _table(cls, ""), *([f"Where: {where}."] if where else [])])


def _places(verb: str, cls: Config) -> Iterator[str]:
    """The fields of a verb that may hold a part."""
    if verb != "explain":
        owner = _config(verb)
        yield from (field.name.replace("_", "-") for field in fields(owner) if cls in kinds(owner, field.name).values())


def _parts() -> set[Config]:
    """Every part that a verb may hold, or a part of it; verbs, which the demo holds, are no parts."""
    verbs = {_config(verb) for verb in cli.VERBS if verb != "explain"}
    found: set[Config] = set()
    waiting = list(verbs)
    while waiting:
        owner = waiting.pop()
        held = {cls for field in fields(owner) for cls in kinds(owner, field.name).values()} - found - verbs
        found |= held
        waiting += held
    return found


def _prose(doc: str) -> str:
    """A docstring as Markdown: titles of sections in bold, their entries as a list."""
    doc = re.sub(r"^([A-Z]\w+):$", r"**\1**\n", doc, flags=re.M)
    doc = re.sub(r"^([A-Z]\w+): ", r"\n**\1:** ", doc, flags=re.M)
    doc = re.sub(r"^    (\w+): ", r"- `\1`: ", doc, flags=re.M)
    return re.sub(r"(?<=[^\n])\n {4,}", " ", doc)


def _table(cls: Config, prefix: str, more: list[str] | None = None) -> str:
    """The fields of a configuration: flag, type, default, what it is."""
    notes, hints = _notes(cls), typing.get_type_hints(cls)
    ordered = sorted(fields(cls), key=lambda field: field.default is not MISSING)  # what has no default comes first
    rows = [_row(field, hints[field.name], notes.get(field.name, ""), prefix) for field in ordered]
    header = ["| flag | values | default | |", "|---|---|---|---|"]
    return "\n".join(header + rows + (more or [])) if rows else "No fields."


def _row(field: "Field[Any]", hint: Any, note: str, prefix: str) -> str:
    required = field.default is MISSING
    name = field.name.upper() if required and prefix else f"{prefix}{field.name.replace('_', '-')}"
    default = "" if required else _value(field.default)
    unit, paper = (field.metadata.get(key, "") for key in ("unit", "paper"))
    told = ". ".join(text.rstrip(".") for text in (unit, note) if text)
    cells = [f"`{name}`", _type(hint), default, _escaped(told) + (f" ({_escaped(paper)})" if paper else "")]
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _value(value: Any) -> str:
    if is_dataclass(value):
        return f"`{kind_name(type(value))}`"
    text = "none" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{_escaped(text)}`" if text else ""


def _type(hint: Any) -> str:
    """What a field takes, in words of the command line."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return ", ".join(map(_type, arguments))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        several = arguments[1:] == (Ellipsis,)
        return f"{_type(arguments[0])} ..." if several else " ".join(map(_type, arguments))
    if is_dataclass(hint):
        cls = cast(Config, hint)
        verb = next((verb for verb in cli.VERBS if verb != "explain" and _config(verb) is cls), "")
        return f"[{verb or cls.__name__}]({'verbs' if verb else 'parts'}.md#{(verb or cls.__name__).lower()})"
    return {type(None): "none", bool: "flag", int: "integer", float: "number", str: "text"}.get(hint, str(hint))


def _notes(cls: Config) -> dict[str, str]:
    """The docstrings below the fields of a configuration, its own and those of the classes that it extends."""
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = cast(ast.ClassDef, tree).body
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value))
    return found


def _recipe(name: str) -> str:
    module = importlib.import_module(f"smalti.recipes.{name}")
    blocks = [f"## {name}", _prose(inspect.getdoc(module) or "")]
    for verb, make in load_recipe(name).items():
        config = make()
        usual = {leaf.name: leaf.value for leaf in leaves(type(config)())}
        rows = [
            f"| `--{leaf.name.replace('_', '-')}` | {_value(leaf.value)} | {_escaped(leaf.paper)} |"
            for leaf in leaves(config)
            if usual.get(leaf.name, MISSING) != leaf.value
        ]
        told = (inspect.getdoc(make) or "").partition("\n\n")[0]
        blocks += [f"### {name}: {verb.replace('_', '-')}", told]
        blocks.append("\n".join(["| flag | value | reference |", "|---|---|---|", *rows]))
    return "\n\n".join(blocks)


def _api() -> str:
    """Every public name, documented by mkdocstrings: first what loads and trains, then the configurations and parts."""
    names = [name for name in smalti.__all__ if not name.startswith("__")]
    functions = sorted(
        (name for name in names if name[0].islower()), key=lambda name: (not name.startswith("load"), name)
    )
    classes = [name for name in names if name[0].isupper()]
    introduction = (
        "`smalti.__all__`, which is what stays (see [the changelog](../changelog.md)). Fields of configurations are"
        " described under the [verbs](verbs.md) and [parts](parts.md); what makes them, in [recipes](recipes.md)."
    )
    blocks = ["# Python", introduction, "## Functions", *(f"::: smalti.{name}" for name in functions)]
    return "\n\n".join([*blocks, "## Classes", *(f"::: smalti.{name}" for name in classes)])
