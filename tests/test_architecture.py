"""The shape of the house: who may import whom, and what is not to be found in it."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "smalti"
FILES = sorted(SRC.rglob("*.py"))
ROWS = [
    {"core"},
    {"distributed"},
    {"functional"},
    {"models"},
    {"tokenizers"},
    {"weights"},
    {"data"},
    {"training"},
    {"evaluation"},
    {"exporting"},
    {"report"},
    {"serving"},
    {"runs"},
    {"recipes"},
    {"help", "find_recipe"},
    {"flags", "help_pages"},
    {"completion"},
    {"cli"},
    {"__main__"},
    {"__init__"},
]
ROWS_OF_DATA = [
    {"formats", "resize"},
    {"npy", "values"},
    {"tiff"},
    {"bands"},
    {"decode"},
    {"datasets"},
    {"reading", "splits", "mask_ids", "transforms", "workers"},
    {"bad_files", "duplicates", "shard_writer"},
    {"groups"},
    {"load", "write_shards"},
    {"loader"},
    {"tokens", "label_maps"},
    {"token_cache"},
]
SEEDED = {
    "models/vit.py",
    "models/layers.py",
    "models/mim.py",
    "models/segmenter.py",
    "models/classifier.py",
    "tokenizers/dvae.py",
    "tokenizers/dalle.py",
    "tokenizers/trunk.py",
}
"""Where weights are drawn: from torch's global generator, seeded and restored around the drawing."""

GLOBAL_CHANCE = {
    *("torch." + name for name in ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like")),
    *("torch." + name for name in ("bernoulli", "multinomial", "normal", "poisson", "seed", "initial_seed")),
    *("F.dropout", "torch.dropout", "nn.Dropout", "F.gumbel_softmax", "torch.random.seed", "os.urandom"),
}
DRAWING_METHODS = {"uniform_", "normal_", "bernoulli_", "random_", "exponential_", "geometric_", "trunc_normal_"}


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def part_of(path: Path) -> str:
    """The package, or the module at the top, that a file belongs to."""
    return name_of(path).split("/")[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def row_of(part: str) -> int:
    return next(number for number, row in enumerate(ROWS) if part in row)


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names of all imported modules and members, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; what stands before the first call or subscript is left out."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return ".".join(reversed(parts))


def test_the_package_is_found() -> None:
    assert len(FILES) > 30
    assert {part_of(path) for path in FILES} <= {part for row in ROWS for part in row}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_from_its_own_package_and_rows_above_only(path: Path) -> None:
    part = part_of(path)
    for name in imported(tree_of(path)):
        root, *rest = name.split(".")
        if root != "smalti" or rest in ([], ["__version__"]):
            continue
        assert rest[0] == part or row_of(rest[0]) < row_of(part), f"{name_of(path)} imports {name}"


def _module(name: str) -> str:
    """The module of a dotted name, which may be that of a member."""
    place = SRC.parent / name.replace(".", "/")
    return name if place.with_suffix(".py").exists() or place.is_dir() else name.rpartition(".")[0]


def test_no_module_imports_itself_through_others() -> None:
    """Nor where an import stands in a function, or for type checkers alone."""
    modules = {f"smalti.{name_of(path).removesuffix('.py').replace('/', '.')}": path for path in FILES}
    del modules["smalti.__init__"]  # the public API names all
    own = {name: {_module(other) for other in imported(tree_of(path))} for name, path in modules.items()}
    TopologicalSorter({name: others & modules.keys() for name, others in own.items()}).prepare()


def _entry(path: Path) -> ast.FunctionDef | None:
    functions = (node for node in tree_of(path).body if isinstance(node, ast.FunctionDef))
    return next((function for function in functions if function.name == "main"), None)


def _public(path: Path, entry: ast.FunctionDef) -> set[str]:
    """What others may take of a verb: `main`, the types of its arguments, and what stands ready to be trained."""
    arguments = (*entry.args.args, *entry.args.kwonlyargs)
    types = {node.id for argument in arguments for node in ast.walk(argument) if isinstance(node, ast.Name)}
    return {"main", "prepare"} | {name for name in types if re.search(rf"^(class )?{name}\b", path.read_text(), re.M)}


VERBS = {path.stem: _public(path, entry) for path in sorted((SRC / "runs").glob("*.py")) if (entry := _entry(path))}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_uses_what_a_verb_keeps_to_itself(path: Path) -> None:
    """What two verbs need is in a module of its own."""
    tree, verbs = tree_of(path), set()
    for name in imported(tree):
        parts = name.split(".")
        if parts[:2] == ["smalti", "runs"] and parts[2] in VERBS:
            if len(parts) == 3:
                verbs.add(parts[2])
            assert len(parts) == 3 or parts[3] in VERBS[parts[2]], f"{name_of(path)} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in verbs:
            assert node.attr in VERBS[node.value.id], f"{name_of(path)} uses {dotted(node)}"


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("data/")], ids=name_of)
def test_a_module_of_data_imports_from_its_own_package_and_rows_above_only(path: Path) -> None:
    rows = {part: number for number, row in enumerate(ROWS_OF_DATA) for part in row} | {"__init__": -1}
    part = name_of(path).split("/")[1].removesuffix(".py")
    for name in imported(tree_of(path)):
        if name.startswith("smalti.data."):
            other = name.split(".")[2]
            assert other == part or rows[other] < rows[part], f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_not_used(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(tree_of(path))}
    assert not roots & {"pickle", "random", "dill", "joblib", "cloudpickle", "shelve", "secrets"}
    assert "tyro" not in roots or name_of(path) == "flags.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in {"torch.load", "torch.save", "np.load", "np.save", "eval", "exec"}, called


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_draw_from_global_random_state(path: Path) -> None:
    tree = tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            assert not name.startswith(("np.random", "numpy.random")), name
            assert name not in GLOBAL_CHANCE, name
            assert node.attr not in DRAWING_METHODS or name_of(path) in SEEDED, name
    assert not any(name.startswith("numpy.random") for name in imported(tree))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_global_seed_is_set_only_where_it_is_restored(path: Path) -> None:
    tree = tree_of(path)
    blocks = [
        node for node in ast.walk(tree) if isinstance(node, ast.With) and "fork_rng(" in ast.unparse(node.items[0])
    ]
    guarded = {id(inner) for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func).endswith("manual_seed"):
            assert id(node) in guarded
            assert name_of(path) == "models/layers.py"


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("package", sorted(path.name for path in SRC.iterdir() if (path / "__init__.py").exists()))
def test_packages_import_nothing_by_themselves(package: str) -> None:
    assert list(imported(tree_of(SRC / package / "__init__.py"))) == []


def test_tests_mirror_the_package() -> None:
    """Folders of tests are named like packages, but those of faults and of many processes; other tests are on top."""
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")} - {"faults", "distributed"}
    assert folders <= {path.stem for path in SRC.iterdir()}


def test_the_package_itself_imports_none_of_its_modules() -> None:
    """What it names under TYPE_CHECKING is for editors and mypy; `tests/test_api.py` compares it with `__all__`."""
    program = "import sys, smalti; print([name for name in sys.modules if name.startswith('smalti.')])"
    environment = os.environ | {"PYTHONPATH": str(SRC.parent)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


@pytest.mark.parametrize("module", ["smalti", "smalti.core.errors", "smalti.core.config", "smalti.flags", "smalti.cli"])
def test_light_modules_import_without_torch(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'torch', 'matplotlib', 'tyro'}} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(SRC.parent)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
