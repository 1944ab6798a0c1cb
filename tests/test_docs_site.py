"""The documentation site: every page is in it, the reference has all of the code, and it asks no other machine."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smalti import cli
from smalti.cli import main as smalti
from smalti.find_recipe import recipe_names

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
GENERATED = {f"reference/{name}.md" for name in ("verbs", "parts", "recipes", "api")}


def in_nav(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inside in entry.values() if isinstance(entry, dict) else entry:
            yield from in_nav(inside)


def script(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return import_module(name)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made: dict[str, str] = script("docs_reference").pages()
    return made


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("mkdocs")
    return script("docs_site")


def test_every_page_is_in_the_site_and_no_other(hook: ModuleType) -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(in_nav(SITE["nav"])) == sorted(written | GENERATED | set(hook.AT_TOP.values()))


def test_every_decision_is_in_their_list() -> None:
    folder = ROOT / "docs" / "decisions"
    links = re.findall(r"^\| \[\d+\]\((\d[\w-]+\.md)\)", (folder / "README.md").read_text(), re.M)
    assert links == sorted(path.name for path in folder.glob("0*.md"))


@pytest.mark.parametrize(
    ("page", "link", "place"),
    [
        ("index.md", "docs/pixels.md", "pixels.md"),
        ("index.md", "examples/pretrain_from_folder.py", "source/examples/pretrain_from_folder.py.md"),
        ("results/cifar10/README.md", "../tokenizers", "results/tokenizers/README.md"),
        ("vae-view.md", "results/vae-view/result.json", "results/vae-view/result.json"),
        ("decisions/README.md", "../../ARCHITECTURE.md", "project/architecture.md"),
        ("project/security.md", "docs/results/faults.md", "results/faults.md"),
    ],
)
def test_a_link_of_the_repository_has_a_place_in_the_site(hook: ModuleType, page: str, link: str, place: str) -> None:
    assert hook._place(hook._resolved(page, link)) == place


def test_links_in_code_are_left_alone(hook: ModuleType) -> None:
    text = "```python\ncalls[0](docs/one.md)\n```\n`[a](docs/two.md)` and [`code`](docs/pixels.md#windows)"
    assert hook._targets("index.md", text) == {"docs/pixels.md"}


def test_the_reference_has_every_verb_and_field(pages: dict[str, str]) -> None:
    verbs = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", pages["reference/verbs.md"], re.M | re.S))
    assert list(verbs) == list(cli.VERBS)
    for verb, text in verbs.items():
        module, config, _ = cli.VERBS[verb]
        cls = getattr(import_module(f"smalti.runs.{module}"), config)
        names = [] if verb == "explain" else [field.name for field in fields(cls)]
        assert [name for name in names if not re.search(rf"`(--)?{name.replace('_', '[_-]')}`", text, re.I)] == [], verb
    parts = set(re.findall(r"^## (\w+)$", pages["reference/parts.md"], re.M))
    linked = set(re.findall(r"\]\(parts\.md#(\w+)\)", "".join(pages.values())))
    assert {part.lower() for part in parts} == linked
    assert {"ViT", "Blockwise", "CrossAttention", "Optimiser", "Mixing"} <= parts
    assert re.findall(r"^## (\w+)$", pages["reference/recipes.md"], re.M) == recipe_names()


def test_the_reference_says_unit_default_and_source(pages: dict[str, str]) -> None:
    assert (
        "| `weight-decay` | number | `0.05` | a step, times the learning rate (BEiT §2.5) |"
        in pages["reference/parts.md"]
    )
    assert "| `--masks-per-image` | integer | `1` |" in pages["reference/verbs.md"]
    assert "| `--masking.ratio` | `0.75` | BEiT §2.3: about 40 % |" in pages["reference/recipes.md"]


@pytest.mark.docs
def test_the_picture_of_masks_is_what_its_command_makes(tmp_path: Path) -> None:
    assert smalti(["masks", "--count", "78", "--out", str(tmp_path / "masks.png")]) == 0
    made, kept = (np.asarray(Image.open(path / "masks.png")) for path in (tmp_path, ROOT / "docs/images/paper"))
    np.testing.assert_array_equal(made, kept)


class Loaded(HTMLParser):
    """What a browser fetches for a page by itself: not where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag != "a" and not (tag == "link" and given.get("rel") in ("canonical", "next", "prev")):
            self.addresses += [given[name] for name in ("src", "srcset", "href", "data", "poster") if name in given]


def loaded_by(page: Path) -> list[str]:
    parser = Loaded()
    parser.feed(page.read_text())
    return parser.addresses


def test_what_a_page_would_fetch_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<a href="https://a.b"><link rel="stylesheet" href="https://c.d/e.css"><img src="f.png"></a>')
    assert loaded_by(page) == ["https://c.d/e.css", "f.png"]


@pytest.mark.slow
def test_the_site_is_built_strictly_and_asks_no_other_machine(tmp_path: Path) -> None:
    """Slow: some hundred pages, a quarter of a minute."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert [address for address in loaded_by(page) if re.match(r"(\w+:)?//", address)] == [], page
    for style in tmp_path.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", style.read_text()) == [], style
    for name in ("load", "Network", "pretrain", "ViT"):
        assert f'id="smalti.{name}"' in (tmp_path / "reference" / "api.html").read_text(), name
