"""The page: one file that is safe to open, whatever the names in it."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from smalti.report.charts import by_layer, curve
from smalti.report.page import Section, page, table
from smalti.report.pictures import Card, atlas, tile_row
from tests.report.reading import inert

NASTY = "<script>alert('1')</script>\" onload=\"x \x1b[2J\x9b\u202e\udcff"
VOID = {"meta", "link", "img"}


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that what opens is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def whole_page() -> str:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    codebook = atlas([Card(1, 0.7, images[1], images)], [1, 2])
    sections = [
        Section("Results", table(["init", "k-NN"], [[NASTY, "81.2 %"]], highlight={(0, 1)}), NASTY),
        Section("Training", curve({NASTY: ([0, 1], [2, 1])}, xlabel="step", ylabel="loss", level=("entropy", 1.5))),
        Section("Layers", by_layer([("1", {"random": 0.5}), ("2", {"random": 0.6})])),
        Section(NASTY, tile_row({"original": images}, captions=[NASTY, "b.png"]) + codebook),
    ]
    return page(NASTY, NASTY, sections, {NASTY: NASTY})


def test_text_from_outside_is_escaped_everywhere() -> None:
    html = inert(whole_page())
    outline = Outline(html)
    assert "<script" not in html
    assert not [attributes for _, attributes in outline.tags if "onload" in attributes]
    assert html.count("&lt;script&gt;") >= 9


def test_no_control_character_gets_into_a_page() -> None:
    html = whole_page()
    assert html.count(r"\x1b[2J\x9b\u202e\udcff") >= 9
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", html)


def test_nothing_is_loaded_and_nothing_runs_but_the_one_script() -> None:
    html = inert(whole_page())
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|javascript:", re.sub(r'src="data:[^"]*"', "", html))
    for tag, attributes in Outline(html).tags:
        assert tag not in {"script", "iframe", "object", "embed", "form", "base"}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]


def test_the_browser_is_told_to_refuse_the_rest() -> None:
    tags = Outline(whole_page()).tags
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "script-src" not in page("t", "s", [Section("No charts", "")], {}), "a page without charts runs nothing"
    assert ("meta", {"charset": "utf-8"}) in tags


def test_ids_are_unique() -> None:
    ids = [attributes["id"] for _, attributes in Outline(whole_page()).tags if "id" in attributes]
    assert [i for i in ids if i and i.startswith("part-")] == ["part-1", "part-2", "part-3", "part-4"]
    assert len(ids) == len(set(ids))


def test_contents_only_where_they_help() -> None:
    few = [Section("One", ""), Section("Two", "")]
    assert "<nav" not in page("t", "s", few, {})
    assert "<nav" in page("t", "s", [*few, Section("Three", "")], {})


def test_the_same_arguments_give_the_same_characters() -> None:
    assert whole_page() == whole_page()


def test_a_file_name_that_is_not_utf8_can_be_written() -> None:
    written = page("t", "s", [Section("Files", table(["name"], [["caf\udce9.png"]]))], {}).encode("utf-8")
    assert rb"caf\udce9.png" in written


class TestTable:
    def test_numbers_are_set_to_the_right(self) -> None:
        html = table(
            ["init", "score", "file", "share"], [["a", "81.2 ± 0.3 %", "001.jpg", "60 000"], ["b", "–", "2", ""]]
        )
        assert re.findall(r'class="number"[^>]*>(.*?)<', html) == ["score", "share", "81.2 ± 0.3 %", "60 000", "–", ""]

    def test_the_first_column_names_the_row(self) -> None:
        assert '<th scope="row">10</th>' in table(["layer", "score"], [["10", "1"]])

    def test_highlight(self) -> None:
        html = table(["init", "score"], [["a", "1"], ["b", "2"]], highlight={(1, 1)})
        assert re.findall(r"<strong>(.*?)</strong>", html) == ["2"]

    def test_rows_as_long_as_the_header(self) -> None:
        with pytest.raises(ValueError, match=r"rows of \[1\] cells below a header of 2"):
            table(["init", "score"], [["a"]])
