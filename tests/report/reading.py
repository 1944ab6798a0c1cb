"""What the tests of the report have in common: reading a figure back."""

import base64
import hashlib
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

NASTY = '<script>alert("1")</script> & $x$'


def svg_of(html: str) -> ET.Element:
    """The drawing inside a figure."""
    found = re.search(r"<svg.*</svg>", html, re.DOTALL)
    assert found
    return ET.fromstring(found.group())


def texts_of(html: str) -> list[str]:
    """Every text inside the drawing."""
    return [element.text or "" for element in svg_of(html).iter("text")]


def pictures_in(html: str) -> list[np.ndarray]:
    """The pixels of every picture, in order."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def inert(html: str) -> str:
    """A page without its one script, if it has one; its policy allows that by its digest, and no other."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    assert len(scripts) <= 1
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    allowed = f"; script-src {digests[0]}" if digests else ""
    assert policy[1] == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}"
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
