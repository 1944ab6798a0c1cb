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
FRAME = """<!DOCTYPE html><body><iframe id="frame" width="{width}" height="900" src="{page}"></iframe><p id="wide"></p>
<script>
document.getElementById("frame").onload = event => {{
  const inside = event.target.contentDocument, found = [];
  for (const part of [inside.documentElement, ...inside.querySelectorAll(".table, nav, dl, .pictures, .chart")])
    if (part.scrollWidth > part.clientWidth + 1) found.push(part.tagName + part.scrollWidth + ">" + part.clientWidth);
  document.getElementById("wide").textContent = "measured " + inside.querySelectorAll("tr").length + ": " + found;
}};
</script></body>"""


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
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(width: int, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(whole_page())
    (tmp_path / "frame.html").write_text(FRAME.format(width=width, page="page.html"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    folder = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    given = [str(BROWSER), *flags, *folder, (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r'<p id="wide">(.*?)</p>', done.stdout)
    assert found == "measured 18: "


def test_a_table_of_many_columns_is_continued_below(tmp_path: Path) -> None:
    header = ["run", *map(str, range(13))]
    html = table(header, [["a", *map(str, range(100, 113))]], highlight={(0, 9)})
    parts = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert [len(re.findall(r'<th scope="col"', part)) for part in parts] == [8, 7]
    assert all('<th scope="row">a</th>' in part for part in parts)
    assert re.findall(r"<strong>(\d+)</strong>", html) == ["108"]
    cells = re.findall(r"<t[dh][^>]*>(?:<strong>)?(\d+)(?:</strong>)?</t[dh]>", html)
    assert cells == [
        *map(str, range(7)),
        *map(str, range(100, 107)),
        *map(str, range(7, 13)),
        *map(str, range(107, 113)),
    ]
