"""Help without what it is made from: pages are kept in the user's cache folder for as long as the sources are the same.

The values of flags are those of configurations, which live beside the networks that they configure. To import these
takes seconds, most of which are torch's; what they say of themselves is a few hundred kilobytes of text.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from smalti.core.errors import OutputError
from smalti.core.files import sha256, write_json
from smalti.core.stored import read_object
from smalti.data.datasets.data_files import cache_folder, make_cache_folder
from smalti.help import Flag, Page


def kept_pages(build: Callable[[], dict[str, Page]]) -> dict[str, Page]:
    """The pages that `build` returns, by command; it is called only where they are not kept, or the sources changed."""
    file, sources = cache_folder() / "help.json", _digest(Path(__file__).parent)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = read_object(file)
        if kept["sources"] == sources:
            return {name: _page(*values) for name, values in kept["pages"].items()}
    pages = build()
    with contextlib.suppress(OutputError, OSError):
        make_cache_folder(cache_folder())
        write_json(file, {"sources": sources, "pages": pages})
    return pages


def _page(command: str, about: str, flags: list[list[str]], parts: dict[str, str]) -> Page:
    return Page(command, about, tuple(Flag(*flag) for flag in flags), parts)


def _digest(folder: Path) -> str:
    """Of all sources, in order of their names."""
    return sha256(*(file.read_bytes() for file in sorted(folder.rglob("*.py"))))
