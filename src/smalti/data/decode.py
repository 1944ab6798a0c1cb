"""Image files to arrays: any format Pillow reads, the right way up, 8 bits, one or three channels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from smalti.core.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
MAX_PIXELS = 100_000_000
_BACKGROUND = 255


def decode(path: Path, channels: int, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: the file; its format is taken from its content, not from its name.
        channels: 1 for grey, 3 for RGB.
        shorter_side: where given, shrink so that the shorter side has this many pixels (never enlarge).

    Returns:
        H x W x channels, uint8. Rotated as the EXIF tag says; 16-bit values scaled, not clipped; transparency laid on
        white; the first frame of an animation.

    Raises:
        DataError: the file is no image, is damaged, or has more than 100 million pixels.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width}x{image.height} pixels", cause=f"the limit is {MAX_PIXELS}")
            if shorter_side is not None:
                image.draft(None, (2 * shorter_side, 2 * shorter_side))
            upright = _eight_bit(ImageOps.exif_transpose(image))
            shrunk = upright if shorter_side is None else _shrink(upright, shorter_side)
            pixels = np.asarray(shrunk.convert("L" if channels == 1 else "RGB"))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"cannot read {path}", cause="not an image in a format smalti knows") from error
    except Exception as error:  # decoders raise many kinds (OSError, SyntaxError, struct.error, ...): all mean bad file
        raise DataError(f"cannot read {path}", cause=str(error) or type(error).__name__) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I") else max(float(values.max(initial=0)), 1e-12)
        return Image.fromarray((values.clip(0, top) * (255 / top) + 0.5).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (_BACKGROUND,) * 3 + (255,))
        return Image.alpha_composite(opaque, image.convert("RGBA"))
    image.load()
    return image


def _shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    scale = shorter_side / min(image.size)
    if scale >= 1:
        return image
    size = tuple(max(round(side * scale), 1) for side in image.size)
    resizable = image if image.mode in ("L", "RGB") else image.convert("RGB")
    return resizable.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)
