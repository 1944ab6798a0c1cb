"""Help without what it is made from: the pages of all commands are a file of the package.

The values of flags are those of configurations, which live beside the networks that they configure. To import these
takes seconds, most of which are torch's. So `make help-pages` writes down what they say, and a test holds that it is
still what they say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.core.files import write_bytes
from smalti.help import Flag, Page

FILE = Path(__file__).parent / "help_pages.jsonl"
"""A line for each page, and one for each of its flags."""


def read_pages(file: Path = FILE) -> dict[str, Page]:
    """The pages by what is typed, as `pretrain nano`."""
    heads: list[dict[str, Any]] = []
    flags: list[list[Flag]] = []
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if isinstance(line, dict):
            heads.append(line)
            flags.append([])
        else:
            flags[-1].append(Flag(*line))
    return {
        head["typed"]: Page(head["command"], head["about"], tuple(own), head["parts"])
        for head, own in zip(heads, flags, strict=True)
    }


def write_pages(pages: Mapping[str, Page], file: Path = FILE) -> None:
    """Write what `read_pages` reads."""
    lines: list[object] = []
    for typed, page in pages.items():
        lines += [{"typed": typed, "command": page.command, "about": page.about, "parts": page.parts}, *page.flags]
    write_bytes(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
