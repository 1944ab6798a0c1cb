"""The command line: `smalti VERB ...`. It only parses, calls a run's `main` and turns errors into one line.

torch is imported by the runs, so nothing here imports them before a verb is chosen.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import itertools
import os
import pkgutil
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from smalti import __version__
from smalti.core.config import did_you_mean, require_finite
from smalti.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_MEMORY,
    EXIT_PREEMPTED,
    OutputError,
    SmaltiError,
    StoppedError,
    UsageError,
)
from smalti.core.log import Log, print_json, printable
from smalti.core.ranks import is_rank0, named, rank, restarts, world_size
from smalti.core.versions import outdated
from smalti.distributed.signals import TerminatedError, terminating

T = TypeVar("T")

_FILE = "my_file.py:function"
_TOGETHER = ("train-tokenizer", "pretrain", "finetune")
"""Verbs that several processes can run together."""

USAGE = f"""smalti {__version__}: BEiT from scratch, on anyone's images

usage: smalti VERB [...] [--json] [--debug]

  demo [--data DATA] [--budget 10m]                       both stages and the measurements, on the embedded images
  check DATA                                              counts, sizes, unreadable files, copies, mean and deviation
  plan DATA [--hours 1]                                   what to run on these images, here, and what it takes
  prepare DATA --out SHARDS                               the images made small once, for fast reading from slow disks
  train-tokenizer RECIPE --data DATA --out RUN            stage one: an image tokenizer, a discrete VAE or another
  tokenize DATA --tokenizer RUN --out CACHE               visual tokens beforehand: then pretrain --token-cache CACHE
  pretrain RECIPE --data DATA --tokenizer RUN --out RUN   stage two: masked image modeling
  finetune RECIPE --data DATA --init RUN --out RUN        classes of images or of pixels, from a pretrained backbone
  import ENCODER.pkl DECODER.pkl --out MODEL              the public DALL-E tokenizer; nothing in the files is run
  evaluate MODEL DATA                                     loss, bound, k-NN, linear probes, few labels; PSNR, codebook
  show MODEL IMAGES... [--out PAGE.html]                  pictures: decoded, as tokens; of a backbone: masked, predicted
  masks [--variant release] [--out masks.html]            what a masking covers: how much, where, in which pieces
  report RUN...                                           one offline HTML file
  replay BUNDLE                                           the step that was not finite once more: where it begins
  explain RECIPE                                          every field, its unit and where it comes from

DATA is a folder of images (flat, or one folder a class), a list of them (.txt .lst .csv .tsv), tar shards
('shards-{{{{000..009}}}}.tar'), Parquet files, a Hugging Face data set, prepared SHARDS, or `embedded`.
RECIPE is a name ({{recipes}}) or my_file.py:function.
A part that there are several kinds of is chosen by name: --masking random, --target pixels.
`smalti VERB --help` lists a verb's flags. `--resume RUN` goes on with a training run, bit for bit; with other settings,
threads or processes than it began with only where `--allow-inexact` says so.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = (_take_flag(arguments, flag) for flag in ("--json", "--debug"))
    try:
        with terminating():
            result = _dispatch(arguments)
        if as_json and result is not None and is_rank0():
            print_json(result)
        print(end="", flush=True)  # what nobody can be given shows here, and not when Python ends
    except SystemExit as stop:  # a verb's --help
        return int(stop.code or 0)
    except StoppedError as stop:
        return _failed(f"{stop}", stop.exit_code, debug=False, kind="stopped")
    except SmaltiError as error:
        return _failed(f"{error}", error.exit_code, debug)
    except TerminatedError:
        return _failed("on SIGTERM; start it again, a training run with --resume", EXIT_PREEMPTED, False, "stopped")
    except BrokenPipeError:
        return _unread()
    except KeyboardInterrupt:
        return _failed("interrupted", EXIT_INTERRUPTED, debug)
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            return _failed("out of memory; lower --plan.batch-size or --data.limit", EXIT_OUT_OF_MEMORY, debug)
        return _failed(
            f"{type(error).__name__}: {error}; this is a bug of ours: run again with --debug and report it", 1, debug
        )
    return 0


def _unread() -> int:
    """Nobody reads the results any more, as behind `| head`: that is said by the exit code alone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)  # else what is in the buffer fails once more at the end
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return OutputError.exit_code


def _dispatch(arguments: list[str]) -> dict[str, Any] | None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(recipe_names())), end="")
        return None
    if arguments[0] == "--version":
        print(__version__)
        return None
    verb, rest = arguments[0], arguments[1:]
    if importlib.util.find_spec("fcntl") is None:
        cause = "this system has no fcntl, which locks run folders"
        raise UsageError("smalti runs on Linux and macOS", cause=cause, fix="on Windows use WSL")
    for line in outdated():
        Log().say(f"warning: {line}; pip install --upgrade smalti")
    if verb not in VERBS:
        raise UsageError(f"unknown verb '{verb}'", fix=did_you_mean(verb, list(VERBS)) or "see smalti --help")
    if world_size() > 1 and verb not in _TOGETHER:
        raise UsageError(f"smalti {verb} runs in one process, not in {world_size()}", fix="start it without torchrun")
    return VERBS[verb](rest)


def _demo(arguments: list[str]) -> dict[str, Any]:
    from smalti.recipes import nano, tiny
    from smalti.runs import demo

    own_images = _take_value(list(arguments), "--data") not in (None, nano.demo().data)
    start = tiny.demo() if own_images else nano.demo()
    config = parse(demo.Demo, start, arguments, "demo")
    return _start(config.out, lambda: demo.main(config))


def _check(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import check

    return check.main(parse(check.Check, None, arguments, "check"))


def _plan(arguments: list[str]) -> dict[str, Any]:
    from smalti.recipes import base, nano, small, tiny
    from smalti.runs import plan
    from smalti.runs.dry_run import Stages

    config = parse(plan.PlanAhead, None, arguments, "plan")
    recipes = {"nano": plan.Candidate(Stages(nano.train_tokenizer(), nano.pretrain()))}
    if config.data != nano.demo().data:
        recipes = {
            "tiny": plan.Candidate(Stages(tiny.train_tokenizer(), tiny.pretrain())),
            "small": plan.Candidate(Stages(small.train_tokenizer(), small.pretrain()), least_images=10_000),
            "base": plan.Candidate(Stages(base.train_tokenizer(), base.pretrain()), least_images=100_000),
        }
    return plan.main(config, recipes=recipes)


def _prepare(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import prepare

    return prepare.main(parse(prepare.Prepare, None, arguments, "prepare"))


def _train_tokenizer(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import train_tokenizer

    return _train(train_tokenizer, train_tokenizer.TrainTokenizer, arguments, "train-tokenizer")


def _tokenize(arguments: list[str]) -> dict[str, Any]:
    """All flags are those of pretrain; the recipe, which says how images are seen, is one that fits DATA."""
    from smalti.runs import tokenize
    from smalti.runs.pretrain import Pretrain

    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UsageError("no images given", fix="smalti tokenize DATA --tokenizer RUN --out CACHE")
    recipe = _take_value(arguments, "--recipe") or ("nano" if arguments[0] == "embedded" else "tiny")
    start = next((run for run in (make() for make in load_recipe(recipe).values()) if isinstance(run, Pretrain)), None)
    if start is None:
        raise UsageError(f"recipe {recipe} has nothing for pretrain")
    flags = arguments if arguments[0].startswith("-") else ["--data", *arguments]
    usage = "tokenize DATA [--recipe RECIPE]"
    return tokenize.main(parse(tokenize.Tokenize, tokenize.Tokenize.of(start), flags, usage))


def _pretrain(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import pretrain

    return _train(pretrain, pretrain.Pretrain, arguments, "pretrain")


def _finetune(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import finetune

    return _train(finetune, finetune.Finetune, arguments, "finetune")


def _train(run: ModuleType, cls: type[Any], arguments: list[str], verb: str) -> dict[str, Any]:
    """A training verb: from a recipe, or on from where a run was left."""
    from smalti.runs.folder import copy_run, is_run, read_config
    from smalti.runs.resume import finished

    folder = _take_value(arguments, "--resume")
    if folder is not None:
        allow_inexact = _take_flag(arguments, "--allow-inexact")
        before = replace(read_config(folder, cls), out=folder)
        config = parse(cls, before, arguments, f"{verb} --resume {folder}")
        if config.out != folder and is_rank0() and not (restarts() and is_run(config.out)):
            copy_run(folder, config.out)
        done = finished(folder, before, config)
        return run.main(config, resume=True, allow_inexact=allow_inexact) if done is None else done
    config = _from_recipe(cls, arguments, verb)
    if not config.out:
        raise UsageError("no run folder given", fix="use --out FOLDER")
    if restarts() and is_run(config.out):  # torchrun repeats the command
        config = replace(read_config(config.out, cls), out=config.out)
        done = finished(config.out, config, config)
        return run.main(config, resume=True) if done is None else done
    return _start(config.out, lambda: run.main(config))


def _start(out: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A new run. Where it fails before its first step, its folder does not stand in the way of the next try."""
    from smalti.runs.folder import forget_unstarted, is_run

    existed = is_run(out)
    try:
        return run()
    except BaseException:
        if not existed:
            forget_unstarted(out)
        raise


def _import(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import import_tokenizer

    return import_tokenizer.main(parse(import_tokenizer.ImportTokenizer, None, arguments, "import"))


def _evaluate(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import evaluate

    return evaluate.main(parse(evaluate.Evaluate, None, arguments, "evaluate"))


def _show(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import show

    return show.main(parse(show.Show, None, arguments, "show"))


def _masks(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import masks

    return masks.main(parse(masks.Masks, None, arguments, "masks"))


def _report(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import report

    return report.main(parse(report.Report, None, arguments, "report"))


def _replay(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import replay

    return replay.main(parse(replay.Replay, None, arguments, "replay"))


def _explain(arguments: list[str]) -> dict[str, Any]:
    from smalti.runs import explain

    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: smalti explain RECIPE [--FIELD VALUE ...]\n\nRECIPE: {', '.join(recipe_names())} or {_FILE}")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("no recipe given", fix=f"smalti explain RECIPE; there are: {', '.join(recipe_names())}")
    name, flags = arguments[0], arguments[1:]
    starts = {verb: function() for verb, function in load_recipe(name).items()}
    if not all(isinstance(start, explain.Config) for start in starts.values()):
        raise UsageError(
            f"{name} returns no training run", fix="explain a recipe of train-tokenizer, pretrain or finetune"
        )
    parsed = {verb: _parse_known(type(start), start, flags, f"explain {name}") for verb, start in starts.items()}
    unknown = next(iter(parsed.values()))[1]  # what no verb knows; a flag of one is unknown to the others
    for _, others in parsed.values():
        unknown = [flag for flag in unknown if flag in others]
    _refuse(unknown, [flag for start in starts.values() for flag in _flags(type(start), start)], f"explain {name}")
    return explain.main(name, {verb: (start, parsed[verb][0]) for verb, start in starts.items()})


VERBS: dict[str, Callable[[list[str]], dict[str, Any] | None]] = {
    "demo": _demo,
    "check": _check,
    "plan": _plan,
    "prepare": _prepare,
    "train-tokenizer": _train_tokenizer,
    "tokenize": _tokenize,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "import": _import,
    "evaluate": _evaluate,
    "show": _show,
    "masks": _masks,
    "report": _report,
    "replay": _replay,
    "explain": _explain,
}


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    folder = Path(__file__).parent / "recipes"
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def recipes_for(verb: str) -> str:
    """The recipes that have something for a verb, as one text."""
    return ", ".join(name for name in recipe_names() if verb.replace("-", "_") in load_recipe(name))


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
    return {
        verb: getattr(module, verb) for verb in ("train_tokenizer", "pretrain", "finetune") if hasattr(module, verb)
    }


def _load_file(path: str, function: str) -> dict[str, Callable[[], Any]]:
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UsageError(f"no recipe file {path}", fix=f"give {_FILE}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SmaltiError:
        raise
    except Exception as error:
        raise UsageError(f"cannot import {path}", cause=f"{type(error).__name__}: {error}") from error
    if not callable(getattr(module, function, None)):
        raise UsageError(f"no function {function} in {path}", fix=did_you_mean(function, dir(module)))
    return {function: getattr(module, function)}


def _from_recipe(cls: type[T], arguments: list[str], verb: str) -> T:
    if arguments and arguments[0] in ("-h", "--help"):
        return parse(cls, cls(), arguments, f"{verb} RECIPE")
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("no recipe given", fix=f"smalti {verb} RECIPE ...; there are: {recipes_for(verb)}")
    for function in load_recipe(arguments[0]).values():
        start = function()
        if isinstance(start, cls):
            return parse(cls, start, arguments[1:], f"{verb} {arguments[0]}")
    raise UsageError(f"recipe {arguments[0]} has nothing for {verb}", fix=f"there are: {recipes_for(verb)}")


def parse(cls: type[T], default: T | None, arguments: list[str], verb: str) -> T:
    """Override the fields of a configuration with flags. `--data X` is short for `--data.path X`.

    Raises:
        UsageError: an unknown flag or a value of the wrong type.
    """
    config, unknown = _parse_known(cls, default, arguments, verb)
    _refuse(unknown, _flags(cls, default), verb)
    return config


def _parse_known(cls: type[T], default: T | None, arguments: list[str], verb: str) -> tuple[T, list[str]]:
    """The configuration, and what of the arguments it has no field for."""
    import tyro

    nested = dataclasses.is_dataclass(getattr(cls, "data", None))
    flags = [re.sub(r"^--data(?==|$)", "--data.path", flag) if nested else flag for flag in arguments]
    default = default if default is None else _with_kinds(default, flags)
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
        raise UsageError(_complaint(printed.getvalue()), fix=f"see smalti {verb} --help") from None
    require_finite(config)
    return config, unknown


def _with_kinds(config: T, flags: list[str], prefix: str = "--") -> T:
    """The configuration with the kinds of parts that `--PART KIND` names; these flags are taken out."""
    from smalti.core.config import as_kind, kinds

    for field in dataclasses.fields(typing.cast(Any, config)):
        part, flag = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(part):
            choices = kinds(type(config), field.name)
            name = _take_value(flags, flag, "KIND") if len(choices) > 1 else None
            if name is not None and name not in choices:
                raise UsageError(f"{flag} is '{name}'", fix=f"there are: {', '.join(choices)}")
            chosen = part if name is None else as_kind(part, choices[name])
            config = replace(typing.cast(Any, config), **{field.name: _with_kinds(chosen, flags, f"{flag}.")})
    return config


def _refuse(unknown: list[str], known: list[str], verb: str) -> None:
    if unknown:
        name = next((flag for flag in unknown if flag.startswith("-")), unknown[0]).split("=")[0]
        raise UsageError(f"unknown option '{name}'", fix=did_you_mean(name, known) or f"see smalti {verb} --help")


def _flags(cls: type[Any], default: Any) -> list[str]:
    from smalti.core.config import leaves

    if default is None:
        names = [field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
    else:
        names = [field.name for field in leaves(default)]
    return ["--" + name.replace("_", "-") for name in names] + [
        "--resume",
        "--allow-inexact",
        "--json",
        "--debug",
        "--data",
    ]


def _complaint(printed: str) -> str:
    """The first paragraph inside the box that tyro draws, without the types of missing arguments."""
    lines = [line.strip(" │") for line in printed.splitlines()]
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"[-─╭╮╰╯]{5,}", line)]
    inside = itertools.takewhile(bool, lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else ["wrong arguments"])
    text = " ".join(line.replace("(required)", "") for line in inside if not re.fullmatch(r"\[*[A-Z ]+\]*", line))
    return text.strip().rstrip(".")


def _take_flag(arguments: list[str], flag: str) -> bool:
    present = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return present


def _take_value(arguments: list[str], flag: str, what: str = "FOLDER") -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` and return the value."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            following = arguments[place + 1 : place + 2]
            given = value if equals else "".join(following)
            if not given or given.startswith("--"):
                raise UsageError(f"no value for {flag}", fix=f"use {flag} {what}")
            del arguments[place : place + (1 if equals else 2)]
            return given
    return None


def _failed(message: str, code: int, debug: bool, kind: str = "error") -> int:
    if debug:
        traceback.print_exc()
    who = f"{named(rank())}: " if world_size() > 1 else ""
    if is_rank0() or kind == "error":
        print(f"{kind}: {who}{printable(' '.join(message.split()))}", file=sys.stderr)
    return code
