"""Pages fit the screens that they are read on: measured in a browser, where one is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from smalti.report.charts import curve
from smalti.report.page import Section, page, table
from smalti.report.pictures import tile_row

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FRAME = """<!DOCTYPE html><body>
<iframe width="390" height="900" src="page.html"></iframe><iframe width="1200" height="900" src="page.html"></iframe>
<script>
for (const frame of document.querySelectorAll("iframe")) frame.onload = () => {
  const inside = frame.contentDocument, wide = [];
  for (const part of [inside.documentElement, ...inside.querySelectorAll(".table, nav, dl, .pictures, .chart")])
    if (part.scrollWidth > part.clientWidth + 1) wide.push(`${part.className} ${part.scrollWidth}`);
  const said = document.body.appendChild(document.createElement("p"));
  said.textContent = frame.width + ": " + inside.querySelectorAll("tr").length + " rows, too wide: " + wide;
};
</script></body>"""
"""Says of both widths what is wider than its place."""


def whole_page() -> str:
    """Tables of up to fourteen columns with long names, tiles, pictures, and a chart."""
    runs = ["a-run-with-a-long-name-of-the-third-of-november", "short", "resnet_like/with/folders/of/others"]
    header = ["run", *(f"the same of a guess that copies the nearest visible token {number}" for number in range(13))]
    body = [[run, *(f"{1000.5 + number:.3f} nats" for number in range(13))] for run in runs]
    few = table(["on held-out images", "value"], [["evidence lower bound, an image", "-2,726 nats"]])
    pictures = tile_row(
        {name: np.zeros((4, 96, 128, 3), np.uint8) for name in ("image", "truth", "predicted")}, scale=2
    )
    chart = curve({run: ([0, 1], [2, 1]) for run in runs}, xlabel="step", ylabel="loss")
    tables = [table(header[:count], [row[:count] for row in body]) for count in (4, 8, 14)]
    sections = [Section(f"Part {n}", html, run=runs[n % 3]) for n, html in enumerate([*tables, few, pictures, chart])]
    return page(", ".join(runs), "What came out of these runs.", sections, {run: "-2,726.4 nats" for run in runs})


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_nothing_is_wider_than_the_screen(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(whole_page())
    (tmp_path / "frame.html").write_text(FRAME)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    given = [str(BROWSER), *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    found = sorted(re.findall(r"<p>(.*?)</p>", done.stdout))
    assert found == ["1200: 26 rows, too wide: ", "390: 26 rows, too wide: "]


def test_a_table_of_many_columns_is_continued_below(tmp_path: Path) -> None:
    header = ["run", *map(str, range(13))]
    html = table(header, [["a", *map(str, range(100, 113))]], highlight={(0, 9)})
    parts = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert [len(re.findall(r'<th scope="col"', part)) for part in parts] == [6, 6, 4]
    assert all('<th scope="row">a</th>' in part for part in parts)
    assert re.findall(r"<strong>(\d+)</strong>", html) == ["108"]
    cells = re.findall(r"<t[dh][^>]*>(?:<strong>)?(\d+)(?:</strong>)?</t[dh]>", html)
    assert cells == [
        str(100 * row + n) for part in (range(5), range(5, 10), range(10, 13)) for row in (0, 1) for n in part
    ]
