"""What the sources do not contain: case K01, and the checklist of SECURITY.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import FILES, dotted, imported, name_of, tree_of

ROOT = Path(__file__).parents[2]

NOT_IMPORTED = {
    *("pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml", "jsonpickle"),  # these run code
    *("subprocess", "pty", "runpy", "code", "webbrowser"),  # these start it
    *("socket", "http", "requests", "httpx", "ftplib", "smtplib", "telnetlib", "xmlrpc"),  # addresses are fsspec's
    *("tarfile", "posthog", "sentry_sdk", "wandb"),
}
IMPORTED = {"data/shard_writer.py": {"tarfile"}, "runs/serve.py": {"socket"}, "training/trackers.py": {"wandb"}}
"""The first makes headers, and opens nothing; the second listens, and asks nobody; the third is offline, and for who
asks for it by `--log wandb`."""
NOT_CALLED = {
    *("eval", "exec", "compile", "__import__", "breakpoint"),
    *("os.system", "os.popen", "os.startfile", "os.fork", "os.forkpty"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.export.load", "np.load", "np.save"),
    *("save_file", "save_model"),  # of safetensors: what they write only its owner may read
    *("importlib.reload", "urllib.request.urlopen"),
}
NOT_PASSED = {"allow_pickle", "weights_only", "shell", "trust_remote_code"}
NOT_NAMED = {"extractall", "LOAD_TRUNCATED_IMAGES", "set_defaults_from_env"}
CALLED = {"exporting/torch_export.py": "torch.export.load"}
"""Of what has been written a moment ago, to compare it."""
IMPORTS_BY_NAME = {"cli.py", "find_recipe.py"}
"""`importlib.import_module`, of verbs and recipes inside the package; `my_file.py:function` is the user's own."""
WRITES = {
    "core/files.py": {"touch", "xb"},  # the probe of a folder; a file that is written in pieces
    "data/shard_writer.py": {"xb"},  # which follows no link
    "data/workers/worker.py": {"write_text"},  # a number for the system, in /proc
    "training/trackers.py": {"xb"},  # events, which are appended to a new file as they come
}
"""What is not written by `core/files.py`: without following links, into files that are not there yet."""


def offences(tree: ast.Module, name: str) -> Iterator[str]:
    """Everything in a module that the lists above forbid."""
    roots = {entry.split(".")[0] for entry in imported(tree)}
    yield from (roots & NOT_IMPORTED) - IMPORTED.get(name, set())
    yield from (entry for entry in imported(tree) if entry.startswith("torch.distributed.checkpoint"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NOT_NAMED:
            yield node.attr
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if (called in NOT_CALLED and CALLED.get(name) != called) or re.match(r"os\.(exec|spawn|posix_spawn)", called):
            yield called
        if called == "importlib.import_module" and name not in IMPORTS_BY_NAME:
            yield called
        yield from (keyword.arg for keyword in node.keywords if keyword.arg in NOT_PASSED)
        yield from (way for way in _written(node, called) if way not in WRITES.get(name, ()))


def _written(node: ast.Call, called: str) -> Iterator[str]:
    """How a call writes a file by itself, where it does."""
    arguments = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if called in ("open", "io.open"):
        yield from (mode for mode in modes if set(mode) & set("wax+"))
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("write_text", "touch"):
        yield node.func.attr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_k01_nothing_here_runs_what_a_file_says_or_writes_around_the_one_writer(path: Path) -> None:
    assert list(offences(tree_of(path), name_of(path))) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", "pickle"),
        ("from yaml import safe_load", "yaml"),
        ("def f():\n    import subprocess", "subprocess"),
        ("from torch.distributed.checkpoint import load", "torch.distributed.checkpoint.load"),
        ("os.system('true')", "os.system"),
        ("os.execv('/bin/true', [])", "os.execv"),
        ("torch.load(path, weights_only=True)", "torch.load"),
        ("np.lib.format.read_array(file, allow_pickle=True)", "allow_pickle"),
        ("archive.extractall()", "extractall"),
        ("ImageFile.LOAD_TRUNCATED_IMAGES = True", "LOAD_TRUNCATED_IMAGES"),
        ("importlib.import_module(config['kind'])", "importlib.import_module"),
        ("open(path, 'w')", "w"),
        ("open(path, mode='r+b')", "r+b"),
        ("path.write_text('x')", "write_text"),
        ("save_file(weights, path)", "save_file"),
    ],
)
def test_each_of_them_would_be_found(line: str, found: str) -> None:
    assert found in list(offences(ast.parse(line), "anywhere.py"))


def test_every_line_of_the_checklist_has_its_test() -> None:
    """And every test that SECURITY.md names is there."""
    page = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) >= 12
    assert [row for row in rows if "`test_" not in row and "not built" not in row] == []
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert set(re.findall(r"`(test_\w+)`", page)) <= defined


def test_the_lock_has_a_digest_for_every_file() -> None:
    entries = re.split(r"^(?=\w)", (ROOT / "requirements.lock").read_text(), flags=re.M)[1:]
    assert len(entries) > 50
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
