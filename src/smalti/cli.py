"""The command line: `smalti VERB ...`. It only parses, calls a run's `main` and turns errors into one line.

torch is imported by the runs, so nothing here imports them before a verb is chosen.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from smalti import __version__
from smalti.core.config import did_you_mean
from smalti.core.errors import EXIT_INTERRUPTED, EXIT_OUT_OF_MEMORY, SmaltiError, UsageError
from smalti.core.log import print_json

T = TypeVar("T")

USAGE = f"""smalti {__version__}: BEiT from scratch, on anyone's images

usage: smalti VERB [...] [--json] [--debug]

  demo [--data DATA] [--budget 10m]                       both stages and the measurements, on the embedded images
  train-tokenizer RECIPE --data DATA --out RUN            stage one: a discrete VAE that turns images into visual tokens
  pretrain RECIPE --data DATA --tokenizer RUN --out RUN   stage two: masked image modeling
  evaluate RUN DATA                                       k-NN and linear probe of every layer; PSNR and codebook use
  report RUN...                                           one offline HTML file
  explain RECIPE                                          every field, its unit and where it comes from

DATA is a folder of images (flat, or one folder a class) or `embedded`. RECIPE is a name ({{recipes}})
or my_file.py:function. `smalti VERB --help` lists a verb's flags; `--resume RUN` goes on with a training run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = (_take_flag(arguments, flag) for flag in ("--json", "--debug"))
    try:
        result = _dispatch(arguments)
    except SmaltiError as error:
        return _failed(f"{error}", error.exit_code, debug)
    except KeyboardInterrupt:
        return _failed("interrupted", EXIT_INTERRUPTED, debug)
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            return _failed("out of memory; lower --plan.batch-size or --data.limit", EXIT_OUT_OF_MEMORY, debug)
        return _failed(
            f"{type(error).__name__}: {error}; this is a bug of ours: run again with --debug and report it", 1, debug
        )
    if as_json and result is not None:
        print_json(result)
    return 0


def _dispatch(arguments: list[str]) -> dict[str, Any] | None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(recipe_names())), end="")
        return None
    if arguments[0] == "--version":
        print(__version__)
        return None
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise UsageError(f"unknown verb '{verb}'", fix=did_you_mean(verb, list(VERBS)) or "see smalti --help")
    return VERBS[verb](rest)


def _demo(arguments: list[str]) -> dict[str, Any]:
    from smalti.recipes import nano, tiny
    from smalti.runs import demo

    own_images = any(a == "--data" or a.startswith("--data=") for a in arguments) and "embedded" not in arguments
    start = tiny.demo() if own_images else nano.demo()
    return demo.main(parse(demo.Demo, start, arguments, "demo"))


def _train_tokenizer(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import train_tokenizer

    return _train(train_tokenizer, train_tokenizer.TrainTokenizer, arguments, "train-tokenizer")


def _pretrain(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import pretrain

    return _train(pretrain, pretrain.Pretrain, arguments, "pretrain")


def _train(run: ModuleType, cls: type[Any], arguments: list[str], verb: str) -> dict[str, Any]:
    """A training verb: from a recipe, or on from where a run was left."""
    from smalti.runs.folder import read_config

    if "--resume" in arguments:
        place = arguments.index("--resume")
        folder = arguments[place + 1] if place + 1 < len(arguments) else ""
        config = replace(read_config(folder, cls), out=folder)
        result: dict[str, Any] = run.main(
            parse(cls, config, arguments[:place] + arguments[place + 2 :], verb), resume=True
        )
        return result
    config = _from_recipe(cls, arguments, verb)
    if not config.out:
        raise UsageError("no run folder given", fix="use --out FOLDER")
    result = run.main(config)
    return result


def _evaluate(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import evaluate

    return evaluate.main(parse(evaluate.Evaluate, None, arguments, "evaluate"))


def _report(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import report

    return report.main(parse(report.Report, None, arguments, "report"))


def _explain(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import explain

    if not arguments or arguments[0].startswith("-"):
        raise UsageError("no recipe given", fix=f"smalti explain RECIPE; there are: {', '.join(recipe_names())}")
    recipe = load_recipe(arguments[0])
    configs = {}
    for verb, function in recipe.items():
        start = function()
        configs[verb] = (start, parse(type(start), start, arguments[1:], f"explain {arguments[0]}"))
    return explain.main(arguments[0], configs)


VERBS: dict[str, Callable[[list[str]], dict[str, Any] | None]] = {
    "demo": _demo,
    "train-tokenizer": _train_tokenizer,
    "pretrain": _pretrain,
    "evaluate": _evaluate,
    "report": _report,
    "explain": _explain,
}


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    folder = Path(__file__).parent / "recipes"
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def load_recipe(name: str) -> dict[str, Callable[[], Any]]:
    """The functions of a recipe by verb; of `my_file.py:function` that one function, whatever its verb."""
    if ":" in name:
        return _load_file(*name.rsplit(":", 1))
    if name not in recipe_names():
        known = recipe_names()
        raise UsageError(
            f"unknown recipe '{name}'", cause=did_you_mean(name, known), fix=f"there are: {', '.join(known)}"
        )
    module = importlib.import_module(f"smalti.recipes.{name}")
    return {verb: getattr(module, verb) for verb in ("train_tokenizer", "pretrain") if hasattr(module, verb)}


def _load_file(path: str, function: str) -> dict[str, Callable[[], Any]]:
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UsageError(f"no recipe file {path}", fix="give my_file.py:function")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise UsageError(f"no function {function} in {path}")
    return {function: getattr(module, function)}


def _from_recipe(cls: type[T], arguments: list[str], verb: str) -> T:
    if arguments and arguments[0] in ("-h", "--help"):
        return parse(cls, cls(), arguments, f"{verb} RECIPE")
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("no recipe given", fix=f"smalti {verb} RECIPE ...; there are: {', '.join(recipe_names())}")
    for function in load_recipe(arguments[0]).values():
        start = function()
        if isinstance(start, cls):
            return parse(cls, start, arguments[1:], f"{verb} {arguments[0]}")
    raise UsageError(f"recipe {arguments[0]} has nothing for {verb}")


def parse(cls: type[T], default: T | None, arguments: list[str], verb: str) -> T:
    """Override the fields of a configuration with flags. `--data X` is short for `--data.path X`.

    Raises:
        UsageError: an unknown flag or a value of the wrong type.
    """
    import tyro

    nested = dataclasses.is_dataclass(getattr(cls, "data", None))
    flags = [re.sub(r"^--data(?==|$)", "--data.path", flag) if nested else flag for flag in arguments]
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
    except SystemExit as stop:
        if stop.code == 0:
            print(printed.getvalue(), end="")
            raise
        raise UsageError(_first_complaint(printed.getvalue()), fix=f"see smalti {verb} --help") from None
    if unknown:
        name = unknown[0].split("=")[0]
        raise UsageError(
            f"unknown option '{name}'", fix=did_you_mean(name, _flags(cls, default)) or f"see smalti {verb} --help"
        )
    return config


def _flags(cls: type[Any], default: Any) -> list[str]:
    from smalti.core.config import leaves

    names = [field.name for field in leaves(cls() if default is None else default)]
    return ["--" + name.replace("_", "-") for name in names] + ["--resume", "--json", "--debug", "--data"]


def _first_complaint(printed: str) -> str:
    """The sentence inside the box that tyro draws."""
    lines = [re.sub(r"[│|]", "", line).strip() for line in printed.splitlines()]
    text = [line for line in lines if line and not re.fullmatch(r"[-─╭╮╰╯\s]+", line)]
    return text[1] if len(text) > 1 else "wrong arguments"


def _take_flag(arguments: list[str], flag: str) -> bool:
    present = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return present


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
