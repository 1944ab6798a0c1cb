"""How a benchmark ends: its figures as lines, as one JSON object, or as the table of a page."""

import json
from collections.abc import Mapping
from pathlib import Path


def print_figures(figures: Mapping[str, object], as_json: bool) -> None:
    """A line each, or all of them as one object."""
    print(json.dumps(figures) if as_json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def put_table(page: Path, table: str) -> None:
    """Replace the table of a page, which is between two comments, if there is the page."""
    if page.exists():
        before, begin, rest = page.read_text().partition("<!-- table:begin -->\n")
        _, end, after = rest.partition("<!-- table:end -->")
        page.write_text(f"{before}{begin}{table}\n{end}{after}")
