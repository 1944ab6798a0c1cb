"""One self-contained HTML page: no font, no request, and no script but the one that zooms charts. It can be mailed,
archived and printed, and shows the same where scripts do not run.

Its HTML and CSS are files of this package, read as Jinja2 templates; the charting library is uPlot (`uplot/`).
"""

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

_NUMBER = re.compile(r"[-+−±<>≈ ]*\d([\d.,\s]*\d)?(e[-+]?\d+)?( ?± ?[\d.,]+)?( ?[%‰a-zA-Zµ/²]{1,9})?|[-–—]?")
"""A number, perhaps with a spread and a short unit; a dash or nothing where there is none."""

_MAX_COLUMNS = 7


_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Characters that control a terminal, or the order of what is read; and halves of characters."""


def template(name: str) -> Template:
    """A file of `smalti.report`, as `page.html`. Whatever it is given is escaped, unless the template says `safe`.

    Control characters in it, of names of files, are spelled out.
    """
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(lambda name: (resources.files("smalti.report") / name).read_text(encoding="utf-8")),
        autoescape=True,
        finalize=spelled_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@cache
def _script() -> str:
    """The charting library, and what draws the charts of a page with it."""
    files = resources.files("smalti.report")
    return "".join((files / name).read_text(encoding="utf-8") for name in ("uplot/uPlot.iife.min.js", "charts.js"))


def spelled_out(value: object) -> object:
    """A text without control characters; what is markup already is left as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
    return value


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        html: fragments made by `table` and by `charts` and `pictures`; the only text of a page that is not escaped.
        note: plain text below the heading: what is shown and how to read it.
        run: the name of the run that it is about, on a page about several.
    """

    title: str
    html: str
    note: str = ""
    run: str = ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, highlight: Collection[tuple[int, int]] = ()) -> str:
    """A table of plain text. Columns of numbers are set to the right; the first column names the row.

    More than seven columns are continued in a second table below the first, with the same names of rows. On a narrow
    screen a table of more than three columns becomes a list for each row.

    Args:
        rows: as many cells each as the header has.
        highlight: (row, column) of the cells to set in bold, counted from 0.

    Raises:
        ValueError: a row is longer or shorter than the header.

    Example:
        >>> '<td class="number">81.2 %</td>' in table(["init", "k-NN"], [["random", "81.2 %"]])
        True
    """
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"rows of {sorted({len(row) for row in rows})} cells below a header of {len(header)}")
    columns = zip(header, *rows, strict=True)
    numeric = [number > 0 and all(map(_NUMBER.fullmatch, column[1:])) for number, column in enumerate(columns)]
    parts = max(1, -(-(len(header) - 1) // (_MAX_COLUMNS - 1)))
    each = max(1, -(-(len(header) - 1) // parts))
    groups = [[0, *range(1 + part * each, min(1 + (part + 1) * each, len(header)))] for part in range(parts)]
    return template("table.html").render(header=header, rows=rows, numeric=numeric, highlight=highlight, groups=groups)


def best_cells(columns: Iterable[tuple[Sequence[float | None], bool | None]]) -> set[tuple[int, int]]:
    """(row, column) of the best value of each column, and of those that equal it; for `highlight` of a table.

    Args:
        columns: the values of the columns behind the first one, which names the rows, and whether a greater one is
            better; None: neither is. A column of one value has no best one.
    """
    found = set[tuple[int, int]]()
    for column, (values, greater) in enumerate(columns, 1):
        known = [value for value in values if value is not None]
        if len(known) > 1 and greater is not None:
            best = max(known) if greater else min(known)
            found |= {(row, column) for row, value in enumerate(values) if value == best}
    return found


def page(title: str, subtitle: str, sections: Sequence[Section], facts: Mapping[str, str], reload: int = 0) -> str:
    """The whole document.

    Args:
        title: what the page is about, as the name of the run.
        subtitle: one sentence: what was done, and what came out.
        sections: in reading order; three or more get a table of contents.
        facts: the few numbers to see first, by name.
        reload: seconds after which a browser loads the page again; 0: never.

    Returns:
        HTML 5, to be written as UTF-8. The same arguments give the same characters.
    """
    script = _script() if any("data-chart=" in section.html for section in sections) else ""
    digest = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    document = template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, facts=facts, reload=reload, script=script, digest=digest
    )
    # A file name may hold bytes that are not UTF-8; Python keeps them as surrogates, which no encoder accepts.
    return document.encode("utf-8", "replace").decode()
