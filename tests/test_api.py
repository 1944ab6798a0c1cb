"""The public API: its names, their signatures, and that nothing is imported before it is used."""

import ast
import inspect
import sys
from pathlib import Path

import pytest

import smalti

CLASSES = {
    "Data",
    "Embed",
    "Evaluate",
    "Export",
    "Finetune",
    "ImageTokenizer",
    "ImportModel",
    "Network",
    "Plan",
    "Predict",
    "Prepare",
    "Pretrain",
    "Result",
    "Search",
    "ModelPictures",
    "Serve",
    "Show",
    "SmaltiError",
    "Tokenize",
    "TrainTokenizer",
    "ViT",
}
TRAINING = "(config, *, resume=False, allow_inexact=False, images=None, compute=None)"
FUNCTIONS = {
    "load": "(model, device='auto', precision='fp32')",
    "load_network": "(model, device='auto', precision='fp32')",
    "load_tokenizer": "(model, device='auto', precision='fp32')",
    "train_tokenizer": TRAINING,
    "pretrain": TRAINING,
    "finetune": TRAINING,
    "tokenize": "(config, *, compute=None)",
    "evaluate": "(config)",
    "prepare": "(config)",
    "embed": "(config)",
    "predict": "(config)",
    "search": "(config)",
    "serve": "(config)",
    "show": "(config)",
    "see": "(config)",
    "export": "(config)",
    "import_model": "(config)",
}
METHODS = {
    "Network.features": "(self, images, layer=None, pooling='mean')",
    "Network.preprocess": "(self, images)",
    "ImageTokenizer.encode": "(self, images)",
    "ImageTokenizer.decode": "(self, ids)",
    "ViT.build": "(self, seed=0)",
}


def signature(function: object) -> str:
    """Without annotations."""
    found = inspect.signature(function)  # type: ignore[arg-type]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return str(inspect.Signature(bare))


def test_these_names_are_public() -> None:
    assert set(smalti.__all__) == {"__version__"} | CLASSES | FUNCTIONS.keys()
    assert sorted(smalti.__all__) == smalti.__all__ == dir(smalti)
    assert all(inspect.isclass(getattr(smalti, name)) for name in CLASSES)


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_signatures(name: str) -> None:
    found: object = smalti
    for part in name.split("."):
        found = getattr(found, part)
    assert signature(found) == (FUNCTIONS | METHODS)[name]
    assert found.__doc__


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"load", "load_network", "load_tokenizer", "see"}))
def test_a_verb_takes_the_configuration_of_its_name(name: str) -> None:
    config = next(iter(inspect.signature(getattr(smalti, name)).parameters.values())).annotation
    assert config is getattr(smalti, "".join(part.title() for part in name.split("_")))


def test_editors_and_mypy_see_the_same_names() -> None:
    tree = ast.parse(Path(smalti.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    named: dict[str, tuple[str | None, str]] = {}
    for node in typed.body:
        assert isinstance(node, ast.ImportFrom)
        named |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    assert named.keys() == set(smalti.__all__) - {"__version__"}
    for name, (module, member) in named.items():
        assert getattr(smalti, name) is getattr(__import__(str(module), fromlist=[member]), member)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'smalti' has no attribute 'pretrian'"):
        _ = smalti.pretrian


def test_a_system_that_it_does_not_run_on_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows is, which has no fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(smalti.SmaltiError, match=r"runs on Linux and macOS; .* on Windows use WSL"):
        smalti.__getattr__("load")
    assert not hasattr(smalti, "unload")
