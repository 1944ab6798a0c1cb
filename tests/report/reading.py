"""What the tests of the report have in common: reading a figure back."""

import base64
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
