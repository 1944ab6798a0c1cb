"""Recipes by name (`nano`), and a function of a file as one (`my_file.py:function`)."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smalti.core.config import did_you_mean
from smalti.core.errors import SmaltiError, UsageError

OWN_FILE = "my_file.py:function"


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
        raise UsageError(f"no recipe file {path}", fix=f"give {OWN_FILE}")
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
