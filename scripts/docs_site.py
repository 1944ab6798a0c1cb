"""A hook of MkDocs: what of the site is not in docs/, and links that lead out of docs/.

The pages keep the links that are right in the repository. README.md becomes the front page, the other pages at the top
of the repository come along, and each source file that a page links to becomes a page that shows it, so that the site
needs nothing but itself.
"""

import posixpath
import re
from pathlib import Path

from docs_reference import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
AT_TOP = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    "SECURITY.md": "project/security.md",
    "examples/README.md": "examples/index.md",
}
"""Pages that are not in docs/: their place in the repository, and that in the site."""

_LINK = re.compile(
    r"(?P<code>^ *(?P<fence>```+|~~~+).*?^ *(?P=fence)|`[^`\n]+`)|\]\((?P<target>[^)\s#]+)(?P<rest>[^)]*)\)",
    re.M | re.S,
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the reference, the pages at the top of the repository, and the sources that pages link to."""
    texts = {AT_TOP[name]: (ROOT / name).read_text() for name in AT_TOP}
    for place, text in (texts | pages()).items():
        files.append(File.generated(config, place, content=text))
    texts |= {file.src_uri: file.content_string for file in files.documentation_pages() if file.src_uri not in texts}
    for page, text in texts.items():
        for target in _targets(page, text):
            place = _place(target)
            if place.startswith("source/") and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, content=_shown(target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository as links of the site."""
    home = page.file.src_uri

    def replaced(link: re.Match[str]) -> str:
        if link["code"] or not _is_ours(link["target"]) or home.startswith(("source/", "reference/")):
            return link[0]
        place = _place(_resolved(home, link["target"]))
        return f"]({posixpath.relpath(place, posixpath.dirname(home))}{link['rest']})"

    return _LINK.sub(replaced, markdown)


def _is_ours(target: str) -> bool:
    return not re.match(r"\w+:", target)


def _targets(page: str, text: str) -> set[str]:
    """The places in the repository that a page of the site links to."""
    links = [link["target"] for link in _LINK.finditer(text) if not link["code"]]
    generated = page.startswith(("source/", "reference/"))
    return set() if generated else {_resolved(page, target) for target in links if _is_ours(target)}


def _resolved(page: str, target: str) -> str:
    """The place in the repository of what a page of the site links to; of a folder its README.md, if it has one."""
    home = next((name for name, place in AT_TOP.items() if place == page), f"docs/{page}")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    return f"{place}/README.md" if (ROOT / place / "README.md").is_file() else place


def _place(target: str) -> str:
    """The place in the site of what is at a place in the repository."""
    if target in AT_TOP:
        return AT_TOP[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}.md"


def _shown(target: str) -> str:
    """A page with a file of the repository, or with the names in a folder of it."""
    path = ROOT / target
    if path.is_dir():
        return "\n".join([f"# {target}\n", *(f"- `{inside.name}`" for inside in sorted(path.iterdir()))])
    if not path.is_file():
        return f"# {target}"  # not built: MkDocs names the link
    return (
        path.read_text() if path.suffix == ".md" else f"# {target}\n\n````{path.suffix[1:]}\n{path.read_text()}````\n"
    )
