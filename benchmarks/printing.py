"""How a benchmark ends: its figures as lines, as one JSON object, or as the table of a page."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def print_figures(figures: Mapping[str, object], as_json: bool) -> None:
    """A line each, or all of them as one object."""
    print(json.dumps(figures) if as_json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def table(columns: Mapping[str, Callable[[dict[str, Any]], str]], results: Mapping[str, dict[str, Any]]) -> str:
    """Finished cells as Markdown, a row each, whose texts `columns` make of it."""
    rows = ([name, *(column(cell) for column in columns.values())] for name, cell in results.items())
    return markdown(["", *columns], rows)


def with_table(page: str, table: str) -> str:
    """A page with this table in the place of its own, which is between two comments."""
    before, begin, rest = page.partition("<!-- table:begin -->\n")
    _, end, after = rest.partition("<!-- table:end -->")
    return f"{before}{begin}{table}\n{end}{after}"


def put_table(page: Path, table: str) -> None:
    """Replace the table of a page, if there is the page."""
    if page.exists():
        page.write_text(with_table(page.read_text(), table))
