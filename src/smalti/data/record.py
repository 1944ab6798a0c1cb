"""What is stored of an image: a small file of its own, JPEG or plain pixels, upright and with 1 or 3 channels."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from smalti.core.errors import DataError
from smalti.data import npy
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.prepared import Encoding
from smalti.data.decode import orientation

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # Pillow writes JPEG too, more slowly
    simplejpeg = None

_SUBSAMPLING = "420"  # at 256 pixels and quality 90: 36 dB; 4:4:4 has 38 dB, 25 % more bytes, takes half as long again
_MAX_JPEG = 65_500


class Form(NamedTuple):
    """How images are stored: shorter side in pixels at most, `quality` of a JPEG from 1 to 100."""

    side: int
    encoding: Encoding
    quality: int
    channels: int


class Record(NamedTuple):
    """An image as it is stored."""

    data: bytes
    label: int
    key: str

    @property
    def suffix(self) -> str:
        """What the name of its file ends with."""
        return "npy" if self.data.startswith(npy.MAGIC) else "jpg"


def make_record(source: ImageDataset, position: int, form: Form) -> Record:
    """Read an image of a source, shrink it where it is larger than asked, never enlarge it, and encode it.

    A JPEG file that is upright and small enough is kept byte for byte: encoding it again could only make it worse. An
    image of a few pixels, of which a JPEG would be larger than they are, is stored raw.

    Raises:
        DataError: it cannot be read or decoded, or is too long for a JPEG.
    """
    data = source.read(position)
    sample = source.decoded(position, data, form.side)  # whole, so that what is kept has been seen to be sound
    if form.encoding == "raw":
        return Record(npy.encode(sample.image), sample.label, sample.key)
    if _is_fit(data, form):
        return Record(data, sample.label, sample.key)
    if max(sample.image.shape) > _MAX_JPEG:
        cause = f"{sample.image.shape[1]}x{sample.image.shape[0]} pixels: a JPEG has at most {_MAX_JPEG} a side"
        raise DataError(f"cannot store {source.name(position)}", cause=cause)
    smaller = min(encode_jpeg(sample.image, form.quality), npy.encode(sample.image), key=len)
    return Record(smaller, sample.label, sample.key)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A JPEG file of H x W x channels: 4:2:0, or grey. Which bytes depends on the library that is there."""
    grey = pixels.shape[2] == 1
    if simplejpeg is not None:
        sampling = "Gray" if grey else _SUBSAMPLING
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "GRAY" if grey else "RGB", sampling))
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _is_fit(data: bytes, form: Form) -> bool:
    """Whether a file that has been decoded is a JPEG, small enough, upright and of no more channels than asked."""
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    with JpegImageFile(BytesIO(data)) as image:
        fits = min(image.size) <= form.side and image.mode in ("L", "RGB")[: form.channels]
        return fits and orientation(image) == 1
