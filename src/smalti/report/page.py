"""One HTML page that needs nothing else: no script, no font, no request. It can be mailed, archived and printed."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser refuses whatever the page should not contain anyway."""

_NUMBER = re.compile(r"[-+−±<>≈ ]*\d([\d.,\s]*\d)?(e[-+]?\d+)?( ?± ?[\d.,]+)?( ?[%‰a-zA-Zµ/²]{1,9})?|[-–—]?")
"""A number, perhaps with a spread and a short unit; a dash or nothing where there is none."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        title: plain text.
        html: fragments made by `table` and by `charts` and `pictures`; the only text of a page that is not escaped.
        note: plain text below the heading: what is shown and how to read it.
    """

    title: str
    html: str
    note: str = ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, highlight: Collection[tuple[int, int]] = ()) -> str:
    """A table of plain text. Columns of numbers are set to the right; the first column names the row.

    Args:
        header: one heading a column.
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
    head = "".join(f'<th scope="col"{_class(numeric[n])}>{escape(cell)}</th>' for n, cell in enumerate(header))
    body = "".join(
        "<tr>" + "".join(_cell(cell, n, numeric[n], (r, n) in highlight) for n, cell in enumerate(row)) + "</tr>\n"
        for r, row in enumerate(rows)
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _cell(text: str, column: int, numeric: bool, bold: bool) -> str:
    inner = f"<strong>{escape(text)}</strong>" if bold else escape(text)
    return f"<td{_class(numeric)}>{inner}</td>" if column else f'<th scope="row">{inner}</th>'


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def page(title: str, subtitle: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """The whole document.

    Args:
        title: what the page is about, as the name of the run.
        subtitle: one sentence: what was done, and what came out.
        sections: in reading order; three or more get a table of contents.
        facts: the few numbers to see first, by name.

    Returns:
        HTML 5, to be written as UTF-8. The same arguments give the same characters.
    """
    document = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{escape(title)} · smalti</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<p class="brand">{_logo()}<span>smalti</span></p>
<h1>{escape(title)}</h1>
<p class="subtitle">{escape(subtitle)}</p>
{_facts(facts)}{_contents(sections)}</header>
<main>
{"".join(_section(number, section) for number, section in enumerate(sections, 1))}</main>
</body>
</html>
"""
    # A file name may hold bytes that are no UTF-8; Python hands them on as surrogates, which no encoder takes.
    return document.encode("utf-8", "replace").decode()


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts.items())
    return f"<dl>{items}</dl>\n" if facts else ""


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<a href="#part-{number}">{escape(s.title)}</a>\n' for number, s in enumerate(sections, 1))
    return f'<nav aria-label="Contents">{links}</nav>\n' if len(sections) > 2 else ""


def _section(number: int, section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>\n' if section.note else ""
    return f'<section id="part-{number}">\n<h2>{escape(section.title)}</h2>\n{note}{section.html}</section>\n'


_LOGO = ("1213", "2..4", "3..1", "1342")
"""A mosaic with a masked block: the numbers are colours, a dot is a masked tile."""


def _logo() -> str:
    tiles = "".join(
        f'<rect x="{6 * column}" y="{6 * row}" width="5" height="5" rx="0.8" {_fill(tile)}/>'
        for row, line in enumerate(_LOGO)
        for column, tile in enumerate(line)
    )
    return f'<svg class="logo" viewBox="0 0 23 23" aria-hidden="true">{tiles}</svg>'


def _fill(tile: str) -> str:
    return 'fill="currentColor" fill-opacity="0.16"' if tile == "." else f'style="fill: var(--tile-{tile})"'


_STYLE = """
:root {
  --paper: #fcfbf8; --ink: #23221e; --soft: #6b685f; --rule: #e5e1d8; --wash: #f4f1ea;
  --tile-1: #2d6bb0; --tile-2: #cf4f2c; --tile-3: #b98a12; --tile-4: #2c8a6a; --tile-5: #8757a8; --tile-6: #7a756b;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #17181b; --ink: #e9e6df; --soft: #a19d93; --rule: #303136; --wash: #1f2024;
    --tile-1: #6ea8e6; --tile-2: #f07f5c; --tile-3: #dcb24a; --tile-4: #5fbf9b; --tile-5: #bb93da; --tile-6: #a8a297;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  max-width: 66rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1.1rem, 4vw, 2.5rem) 6rem;
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; overflow-wrap: anywhere;
}
h1, h2 {
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", Georgia, serif;
  font-weight: 500; line-height: 1.2; text-wrap: balance;
}
h1 { font-size: clamp(2rem, 5vw, 2.9rem); letter-spacing: -0.01em; margin: 0; }
h2 { font-size: 1.55rem; margin: 0 0 1.2rem; }
h2:has(+ .note) { margin-bottom: 0.5rem; }
.brand {
  display: flex; align-items: center; gap: 0.65rem; margin: 0 0 2.6rem; color: var(--soft); letter-spacing: 0.06em;
}
.logo { width: 1.7rem; color: var(--ink); }
.subtitle { max-width: 44rem; margin: 0.9rem 0 0; color: var(--soft); font-size: 1.15rem; text-wrap: pretty; }
dl {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1.5rem 2rem; margin: 2.6rem 0 0;
}
dl > div { border-top: 2px solid var(--ink); padding-top: 0.6rem; }
dt { color: var(--soft); font-size: 0.85rem; }
dd { margin: 0.1rem 0 0; font-size: 1.3rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.5rem; margin-top: 2.6rem; font-size: 0.92rem; }
a { color: var(--tile-1); text-decoration: none; }
a:hover { text-decoration: underline; text-underline-offset: 0.2em; }
section { margin-top: 4.5rem; scroll-margin-top: 1.5rem; }
.note { max-width: 44rem; margin: 0 0 1.6rem; color: var(--soft); text-wrap: pretty; }
figure { margin: 0 0 1.5rem; }
figcaption { color: var(--soft); font-size: 0.85rem; margin-top: 0.5rem; }
.chart { display: inline-block; max-width: 100%; margin-right: 2rem; vertical-align: top; color: var(--soft); }
.chart svg { display: block; width: 100%; font-variant-numeric: tabular-nums; overflow: visible; }
.key { display: inline-block; margin-right: 1.3rem; }
.key i {
  display: inline-block; width: 1.1rem; height: 3px; border-radius: 2px; margin-right: 0.5rem; vertical-align: middle;
}
.key b { color: var(--ink); font-weight: 500; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; }
.pictures figcaption { flex-basis: 100%; margin-top: -0.8rem; }
.tiles { display: grid; gap: 6px; align-content: start; max-width: 100%; }
.tiles b {
  align-self: end; color: var(--soft); font-size: 0.8rem; font-weight: 400; line-height: 1.3; padding-bottom: 0.2rem;
}
.tiles p { grid-column: 1 / -1; margin: -2px 0 8px; color: var(--soft); font-size: 0.78rem; line-height: 1.3; }
.tiles img, .atlas img {
  display: block; width: 100%; height: auto; border-radius: 2px; box-shadow: 0 0 0 1px var(--rule);
}
.sharp, .atlas img { image-rendering: pixelated; }
.atlas { display: grid; gap: 3px; width: 100%; }
.atlas .unused { opacity: 0.25; }
.table { overflow-x: auto; margin: 0 0 1.5rem; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 0.5rem 2.2rem 0.5rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: baseline;
}
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 400; }
thead th { color: var(--soft); font-size: 0.85rem; border-bottom-color: var(--soft); }
.number { text-align: right; white-space: nowrap; }
strong { font-weight: 650; }
@media (max-width: 36rem) {
  dl { gap: 1.2rem; }
  th, td { padding-right: 1.2rem; }
  .chart { margin-right: 0; }
}
@media print {
  :root { --paper: #fff; font-size: 10pt; }
  body { max-width: none; padding: 0; }
  .chart { width: 47% !important; margin-right: 2%; }
  nav { display: none; }
  section { margin-top: 2.2rem; }
  h2, .note { break-after: avoid; }
  .chart, tr, .tiles img { break-inside: avoid; }
  img, .key i, .logo { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
