"""What the tests of the report have in common: reading a figure back."""

import re
import xml.etree.ElementTree as ET

NASTY = '<script>alert("1")</script> & $x$'


def svg_of(html: str) -> ET.Element:
    """The drawing inside a figure."""
    found = re.search(r"<svg.*</svg>", html, re.DOTALL)
    assert found
    return ET.fromstring(found.group())


def texts_of(html: str) -> list[str]:
    """Every text inside the drawing."""
    return [element.text or "" for element in svg_of(html).iter("text")]
