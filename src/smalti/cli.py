"""The command line: `smalti VERB ...`. It finds the verb, calls its `main` and turns errors into one line.

torch is imported by the runs, so nothing here imports them before a verb is chosen; its help is a file.
"""

import dataclasses
import importlib
import io
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from smalti import __version__
from smalti.completion import candidates, completion
from smalti.core.config import as_kind, did_you_mean
from smalti.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    OutputError,
    SmaltiError,
    StoppedError,
    UsageError,
    unforeseen,
)
from smalti.core.log import Log, print_json, printable, silence
from smalti.core.ranks import is_rank0, rank, rank_name, restarts, world_size
from smalti.core.versions import installed, outdated, require_system
from smalti.distributed.signals import TerminatedError, raise_on_sigterm
from smalti.find_recipe import OWN_FILE, load_recipe, recipe_names, recipes_for
from smalti.flags import (
    OTHER_FLAGS,
    UnknownFlagError,
    flags_of,
    parse,
    parse_known,
    refuse,
    take_flag,
    take_value,
    without_foreign_flags,
)
from smalti.help import ALWAYS, OF_TRAINING, Flag, HelpAskedError, Page, about, take_help
from smalti.help_pages import read_pages

T = TypeVar("T")
Result: TypeAlias = dict[str, Any]

USAGE = f"""smalti {__version__}: BEiT from scratch, on anyone's images

usage: smalti VERB [...] [--json] [--debug]; smalti --version [--verbose], for bug reports

  demo [--data DATA] [--budget 10m]                       both stages and the measurements, on the embedded images
  check DATA                                              counts, sizes, unreadable files, copies, mean and deviation
  plan DATA [--hours 1]                                   what to run on these images, here, and what it takes
  split DATA --test 0.2 --out LISTS                       train.csv and test.csv: by class, groups and copies in one
  prepare DATA --out SHARDS                               the images made small once, for fast reading from slow disks
  train-tokenizer RECIPE --data DATA --out RUN            stage one: an image tokenizer, a discrete VAE or another
  tokenize DATA --tokenizer RUN --out CACHE               visual tokens beforehand: then pretrain --token-cache CACHE
  pretrain RECIPE --data DATA --tokenizer RUN --out RUN   stage two: masked image modeling
  finetune RECIPE --data DATA --init RUN --out RUN        classes of images or of pixels, from a pretrained backbone
  import WEIGHTS --out MODEL                              of timm, transformers, unilm, lightly; DALL-E has two files
  info MODEL                                              what a model is, its input, its results, its best layer
  export MODEL --to timm --out FOLDER                     for timm, huggingface, unilm, onnx, torch-export; a bundle
  evaluate MODEL DATA                                     loss, bound, k-NN, linear probes, few labels; PSNR, codebook
  embed MODEL DATA --out features.npy                     features of all images, a row each; or features.parquet
  predict MODEL DATA --out predictions.csv                what a fine-tuned network says of each image; masks as PNGs
  search FEATURES IMAGE... [--out PAGE.html]              the nearest images by their features; --near-duplicates 0.95
  show MODEL IMAGES... [--out PAGE.html] [--attention 6]  pictures: tokens; masked, predicted; attention, features
  serve MODEL [--features features.npy]                   a page on this machine: paint a mask, see what is predicted
  masks [--variant release] [--out masks.html]            what a masking covers: how much, where, in which pieces
  report RUN... [--watch]                                 one offline HTML file; written again while the runs train
  replay CAPTURED                                         the step that was not finite once more: where it begins
  explain RECIPE                                          every field, its unit and where it comes from
  completion bash                                         a script that completes these commands; also zsh and fish

DATA is a folder of images (flat, or one folder a class), a list of them (.txt .lst .csv .tsv), a .zip, tar shards
('shards-{{{{000..009}}}}.tar'), Parquet files, a Hugging Face data set, prepared SHARDS, or `embedded`.
RECIPE is a name ({{recipes}}) or my_file.py:function.
A part that there are several kinds of is chosen by name: --masking random, --target pixels.
`smalti VERB --help` shows the flags that people need, `--help all` all of them, `smalti VERB RECIPE --help` those of a
recipe with its values. `--resume RUN` goes on with a training run, bit for bit; with other settings, threads or
processes than it began with only where `--allow-inexact` says so.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _escape_unprintable()
    as_json, debug = (take_flag(arguments, flag) for flag in ("--json", "--debug"))
    try:
        with raise_on_sigterm():
            result = _dispatch(arguments)
        if as_json and result is not None and is_rank0():
            print_json(result)
        print(end="", flush=True)  # what nobody can be given shows here, and not when Python ends
    except StoppedError as stop:
        return _failed(f"{stop}", stop.exit_code, debug=False, kind="stopped")
    except SmaltiError as error:
        return _failed(_for_verb(f"{error}", arguments), error.exit_code, debug)
    except TerminatedError:
        return _failed("on SIGTERM; start it again, a training run with --resume", EXIT_PREEMPTED, False, "stopped")
    except BrokenPipeError:
        silence(sys.stdout)
        return OutputError.exit_code
    except KeyboardInterrupt:
        return _failed("interrupted", EXIT_INTERRUPTED, debug)
    except Exception as error:
        failure = unforeseen(error)
        if isinstance(failure, OutputError):
            _drop_unwritten()
        message = f"{failure}" if failure.exit_code == SmaltiError.exit_code else _for_verb(f"{failure}", arguments)
        return _failed(message, failure.exit_code, debug)
    return 0


def _escape_unprintable() -> None:
    """Escape what the encoding of standard output lacks, as in a name: it ends no command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.closed and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_unwritten() -> None:
    """Drop what could not be written to standard output, if anything: Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            silence(sys.stdout)


def _for_verb(message: str, arguments: list[str]) -> str:
    """A message without advice to use a flag of DATA that the verb does not have."""
    if not arguments or arguments[0] not in VERBS:
        return message
    module, config, _ = VERBS[arguments[0]]
    try:
        cls = getattr(importlib.import_module(f"smalti.runs.{module}"), config)
    except Exception:  # the message may be of this very import, as with a broken torch
        return message
    return without_foreign_flags(message, cls) if isinstance(cls, type) and dataclasses.is_dataclass(cls) else message


def _dispatch(arguments: list[str]) -> Result | None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(recipe_names())), end="")
        return None
    if arguments[0] == "--version":
        return _version(verbose="--verbose" in arguments)
    if arguments[0] in ("completion", "--complete"):
        print(completion(arguments[1:]) if arguments[0] == "completion" else candidates(arguments[1:]))
        return None
    verb, rest = arguments[0], arguments[1:]
    require_system()
    for line in outdated():
        Log().say(f"warning: {line}; pip install --upgrade smalti")
    if verb not in VERBS:
        raise UsageError(
            f"unknown verb '{verb}'", fix=did_you_mean(verb, [*VERBS, "completion"]) or "see smalti --help"
        )
    wanted = take_help(typed := list(arguments))
    if wanted is not None and typed in ([verb], [verb, *typed[1:2]]) and set(typed[1:]) <= set(recipe_names()):
        page = read_pages().get(" ".join(typed))
        if page is not None:
            print(page.text(wanted), end="")
            return None
    module, config, call = VERBS[verb]
    if world_size() > 1 and not (call is _train or verb in MULTI_PROCESS_VERBS):
        raise UsageError(f"smalti {verb} runs in one process, not in {world_size()}", fix="start it without torchrun")
    run = importlib.import_module(f"smalti.runs.{module}")
    try:
        return call(verb, run, getattr(run, config), rest)
    except HelpAskedError as asked:
        print(asked.page.text(asked.wanted), end="")
        return None
    except UnknownFlagError as error:
        owners = _owners(error.flag, verb)
        raise UsageError(error.what, cause=error.hint if owners else "", fix=owners or error.fix) from None


def _version(verbose: bool) -> Result | None:
    """Print the version; `verbose` also all that a bug report needs."""
    if not verbose:
        print(__version__)
        return None
    require_system()
    from smalti.core.compute import about_compute

    about = installed() | about_compute()
    for name, value in about.items():
        print(f"{name}: {value}")
    return about


def all_pages() -> dict[str, Page]:
    """The help of every verb, and of every recipe with it, by what is typed: `pretrain nano`."""
    pages = {}
    for verb, (module, config, call) in VERBS.items():
        run = importlib.import_module(f"smalti.runs.{module}")
        for words in ([], *([name] for name in recipe_names() if call is _train)):
            try:
                call(verb, run, getattr(run, config), [*words, "--help"])
            except HelpAskedError as asked:
                pages[" ".join([verb, *words])] = asked.page
            except UsageError:
                continue  # the recipe has nothing for the verb
    return pages


def _owners(flag: str, verb: str) -> str:
    """Which other verbs have a flag, as a text; empty where none has."""
    found = []
    for name, (module, config, call) in VERBS.items():
        if name in (verb, "explain"):
            continue
        cls = getattr(importlib.import_module(f"smalti.runs.{module}"), config)
        known = flags_of(cls, cls() if call is _train else None)
        own = known if call is _train else [known_flag for known_flag in known if known_flag not in OTHER_FLAGS]
        if flag in own:
            found.append(name)
    if not found:
        return ""
    listed = " and ".join([*([", ".join(found[:-1])] if found[1:] else []), found[-1]])
    return f"smalti {listed} {'have' if found[1:] else 'has'} it, {verb} has not; see smalti {verb} --help"


def _plain(verb: str, run: ModuleType, cls: type[Any], arguments: list[str]) -> Result:
    """A verb that has flags and nothing else."""
    return run.main(parse(cls, None, arguments, verb))


def _demo(verb: str, run: ModuleType, cls: type[Any], arguments: list[str]) -> Result:
    from smalti.recipes import nano, tiny

    own_images = take_value(list(arguments), "--data") not in (None, nano.demo().data)
    return run.main(parse(cls, tiny.demo() if own_images else nano.demo(), arguments, verb))


def _plan(verb: str, run: ModuleType, cls: type[Any], arguments: list[str]) -> Result:
    from smalti.recipes import base, nano, small, tiny
    from smalti.runs.dry_run import Stages
    from smalti.runs.plan import Candidate

    config = parse(cls, None, arguments, verb)
    recipes = {"nano": Candidate(Stages(nano.train_tokenizer(), nano.pretrain()), finetune=nano.finetune())}
    if config.data != nano.demo().data:
        recipes = {
            "tiny": Candidate(Stages(tiny.train_tokenizer(), tiny.pretrain()), finetune=tiny.finetune()),
            "small": Candidate(Stages(small.train_tokenizer(), small.pretrain()), 10_000, small.finetune()),
            "base": Candidate(Stages(base.train_tokenizer(), base.pretrain()), 100_000, base.finetune()),
        }
    return run.main(config, recipes=recipes)


def _tokenize(verb: str, run: ModuleType, cls: type[Any], arguments: list[str]) -> Result:
    """All flags are those of pretrain; the recipe, which says how images are seen, is one that fits DATA."""
    from smalti.runs.pretrain_config import Pretrain

    if not arguments or (arguments[0].startswith("-") and take_help(list(arguments[:1])) is None):
        raise UsageError("no images given", fix="smalti tokenize DATA --tokenizer RUN --out CACHE")
    recipe = take_value(arguments, "--recipe", "RECIPE") or ("nano" if arguments[0] == "embedded" else "tiny")
    start = next((run for run in (make() for make in load_recipe(recipe).values()) if isinstance(run, Pretrain)), None)
    if start is None:
        raise UsageError(f"recipe {recipe} has nothing for pretrain")
    flags = arguments if arguments[0].startswith("-") else ["--data", *arguments]
    which = Flag("recipe", "RECIPE", "how images are seen: as in pretrain with it", recipe)
    return run.main(parse(cls, as_kind(start, cls), flags, f"{verb} DATA [--recipe RECIPE]", (which,)))


def _train(verb: str, run: ModuleType, cls: type[Any], arguments: list[str]) -> Result:
    """A training verb: from a recipe, or on from where a run was left."""
    from smalti.runs.folder import copy_run, finished_result, is_run, read_config, require_run

    folder = take_value(arguments, "--resume")
    if folder is not None:
        allow_inexact = take_flag(arguments, "--allow-inexact")
        before = replace(read_config(folder, cls), out=folder)
        require_run(folder, fix="start a new run from it, with --init or --init-from")
        config = parse(cls, before, arguments, f"{verb} --resume {folder}", OF_TRAINING)
        if config.out != folder and is_rank0() and not (restarts() and is_run(config.out)):
            copy_run(folder, config.out)
        done = finished_result(folder, before, config)
        if done is not None:
            return done
        return _ended(run.main(config, resume=True, allow_inexact=allow_inexact), verb, "RECIPE", config)
    recipe = arguments[0] if arguments else ""
    config = _from_recipe(cls, arguments, verb)
    if not config.out:
        raise UsageError("no run folder given", fix="use --out FOLDER")
    if restarts() and is_run(config.out):  # torchrun repeats the command
        config = replace(read_config(config.out, cls), out=config.out)
        done = finished_result(config.out, config, config)
        return done if done is not None else _ended(run.main(config, resume=True), verb, recipe, config)
    return _ended(run.main(config), verb, recipe, config)


def _ended(result: Result, verb: str, recipe: str, config: Any) -> Result:
    """Say what can be done with a finished run."""
    from smalti.core.addresses import shown
    from smalti.runs.commands import channel_flags, reading_flags

    run, data = shlex.quote(config.out), config.data
    channels = channel_flags("--backbone.in-chans", data.channels)
    if verb == "train-tokenizer":
        known = recipe in recipe_names() and "pretrain" in load_recipe(recipe)
        flags = channels + reading_flags(data) + (["--data.group", data.group] if data.group else [])
        words = ["smalti", "pretrain", recipe if known else "RECIPE", "--data", shown(data.path)]
        then = shlex.join([*words, "--tokenizer", config.out, *flags, "--out", "OUT"])
    elif verb == "pretrain":
        words = ["smalti", "finetune", "RECIPE", "--data", "LABELLED", "--init", config.out, *channels, "--out", "OUT"]
        then = f"smalti evaluate {run} LABELLED; {shlex.join(words)}"
    else:
        then = f"smalti evaluate {run} LABELLED; smalti report {run}"
    Log().say(f"next: {then}")
    return result


def _explain(verb: str, run: ModuleType, cls: type[Any], arguments: list[str]) -> Result:
    if (wanted := take_help(arguments)) is not None:
        which = f"{', '.join(recipe_names())}, or {OWN_FILE}; it is followed by flags of the verb that runs it"
        raise HelpAskedError(Page(f"{verb} RECIPE", about(run), (Flag("RECIPE", "", which), *ALWAYS), {}), wanted)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("no recipe given", fix=f"smalti explain RECIPE; there are: {', '.join(recipe_names())}")
    name, flags = arguments[0], arguments[1:]
    starts = {part: function() for part, function in load_recipe(name).items()}
    if not all(isinstance(start, cls) for start in starts.values()):
        raise UsageError(
            f"{name} returns no training run", fix="explain a recipe of train-tokenizer, pretrain or finetune"
        )
    parsed = {part: parse_known(type(start), start, flags, f"{verb} {name}") for part, start in starts.items()}
    unknown = next(iter(parsed.values()))[1]  # what no verb knows; a flag of one is unknown to the others
    for _, others in parsed.values():
        unknown = [flag for flag in unknown if flag in others]
    refuse(unknown, [flag for start in starts.values() for flag in flags_of(type(start), start)], f"{verb} {name}")
    return run.main(name, {part: (start, parsed[part][0]) for part, start in starts.items()})


class Verb(NamedTuple):
    """A module of `runs`, the name of its configuration, and how both and the arguments come together."""

    module: str
    config: str
    call: Callable[[str, ModuleType, type[Any], list[str]], Result] = _plain


VERBS = {
    "demo": Verb("demo", "Demo", _demo),
    "check": Verb("check", "Check"),
    "plan": Verb("plan", "PlanAhead", _plan),
    "split": Verb("split", "Split"),
    "prepare": Verb("prepare", "Prepare"),
    "train-tokenizer": Verb("train_tokenizer", "TrainTokenizer", _train),
    "tokenize": Verb("tokenize", "Tokenize", _tokenize),
    "pretrain": Verb("pretrain", "Pretrain", _train),
    "finetune": Verb("finetune", "Finetune", _train),
    "import": Verb("import_model", "ImportModel"),
    "info": Verb("info", "Info"),
    "export": Verb("export", "Export"),
    "evaluate": Verb("evaluate", "Evaluate"),
    "embed": Verb("embed", "Embed"),
    "predict": Verb("predict", "Predict"),
    "search": Verb("search", "Search"),
    "show": Verb("show", "Show"),
    "serve": Verb("serve", "Serve"),
    "masks": Verb("masks", "Masks"),
    "report": Verb("report", "Report"),
    "replay": Verb("replay", "Replay"),
    "explain": Verb("explain", "Config", _explain),
}
MULTI_PROCESS_VERBS = ("embed", "evaluate", "predict", "prepare", "tokenize")
"""Verbs that several processes can do together, beside those that train."""


def _from_recipe(cls: type[T], arguments: list[str], verb: str) -> T:
    if arguments and arguments[0].partition("=")[0] in ("-h", "--help"):
        which = Flag("RECIPE", "", f"{recipes_for(verb)}, or {OWN_FILE}; its values: smalti {verb} RECIPE --help")
        return parse(cls, cls(), arguments, f"{verb} RECIPE", (which, *OF_TRAINING))
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("no recipe given", fix=f"smalti {verb} RECIPE ...; there are: {recipes_for(verb)}")
    for function in load_recipe(arguments[0]).values():
        start = function()
        if isinstance(start, cls):
            return parse(cls, start, arguments[1:], f"{verb} {arguments[0]}", OF_TRAINING)
    raise UsageError(f"recipe {arguments[0]} has nothing for {verb}", fix=f"there are: {recipes_for(verb)}")


def _failed(message: str, code: int, debug: bool, kind: str = "error") -> int:
    if debug:
        traceback.print_exc()
    who = f"{rank_name(rank())}: " if world_size() > 1 else ""
    if is_rank0() or kind == "error":
        print(f"{kind}: {who}{printable(' '.join(message.split()))}", file=sys.stderr)
    return code
