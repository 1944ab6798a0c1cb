"""What a notebook shows of a result, a network or a tokenizer: a table instead of a long line of text."""

from collections.abc import Mapping
from html import escape
from typing import Any

_MAX_ITEMS = 8
"""Elements of a list, or of a table inside a table, that are shown."""
_SHAPE = "text-align: left; vertical-align: top; font-variant-numeric: tabular-nums"


class Result(dict[str, Any]):
    """The result of a run: a dict, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return facts_table(self)


def facts_table(facts: Mapping[str, Any], title: str = "") -> str:
    """Names and values as an HTML table; a mapping inside is a table inside. All texts are escaped.

    It has no class and needs no style sheet, so it is the same in every notebook.
    """
    rows = "".join(
        f'<tr><th style="{_SHAPE}">{escape(str(name))}</th><td style="{_SHAPE}">{_cell(value)}</td></tr>'
        for name, value in facts.items()
    )
    caption = f"<caption><b>{escape(title)}</b></caption>" if title else ""
    return f"<table>{caption}<tbody>{rows}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        first = dict(list(value.items())[:_MAX_ITEMS])
        return facts_table(first) + (f"and {len(value) - _MAX_ITEMS} more" if len(value) > _MAX_ITEMS else "")
    if isinstance(value, list | tuple):
        shown = ", ".join(map(_cell, value[:_MAX_ITEMS]))
        return shown + (f", and {len(value) - _MAX_ITEMS} more" if len(value) > _MAX_ITEMS else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else escape(str(value))
