"""Rebuild the image data embedded in the package: ``src/smalti/data/embedded``.

The inputs are the Debian package of Fashion-MNIST and a scikit-image wheel::

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    pip download --no-deps scikit-image==0.26.0
    python scripts/build_embedded.py fashion/usr/share/datasets/fashion-mnist scikit_image-*.whl

Each split is one xz file of raw pixels, stored column by column (smaller by a few per cent than row by row, and than
a lossless WebP or PNG mosaic). The images cycle through the classes: image ``k`` has label ``k % 10``. The pixels are
fixed by the SHA-256 in ``fashion-mnist.json``; the compressed bytes may differ with another liblzma or libjpeg.
"""

import argparse
import gzip
import hashlib
import io
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPLITS = {"train": ("train", 2000), "test": ("t10k", 500)}  # split: (prefix of the idx files, images a class)
SIDE = 28
PRESET = 9 | lzma.PRESET_EXTREME
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": 1 << 24, "lc": 4, "lp": 0, "pb": 0}]
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "rocket.jpg",
)
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "src/smalti/data/embedded"


def read_idx(path: Path) -> np.ndarray:
    """Read a gzip-compressed idx file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def build_fashion(source: Path, out: Path) -> None:
    """Write the stratified splits of Fashion-MNIST and their description."""
    splits: dict[str, dict[str, object]] = {}
    for split, (prefix, per_class) in SPLITS.items():
        paths = [source / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        images, labels = map(read_idx, paths)
        chosen = np.stack([np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASSES))], axis=1).ravel()
        pixels = images[chosen]
        packed = lzma.compress(pixels.swapaxes(1, 2).tobytes(), filters=FILTERS)
        name = f"fashion-mnist-{split}.xz"
        (out / name).write_bytes(packed)
        splits[split] = {
            "file": name,
            "count": len(pixels),
            "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "idx_sha256": {p.stem: hashlib.sha256(gzip.decompress(p.read_bytes())).hexdigest() for p in paths},
        }
        print(f"{name}: {len(pixels)} images, {len(packed)} bytes")
    description = {
        "name": "fashion-mnist",
        "classes": CLASSES,
        "tile": [SIDE, SIDE],
        "layout": "xz of uint8[count, column, row]; swap the last two axes for count x height x width",
        "label_rule": "label of image k = k % 10; within a class in the order of the original file",
        "sha256_of": "uint8[count, height, width] in C order",
        "splits": splits,
        "source": "Debian package dataset-fashion-mnist 0.0~git20200523.55506a9-1",
        "url": "https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT",
        "copyright": "2017, Zalando SE, https://tech.zalando.com",
    }
    (out / "fashion-mnist.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a colour picture with an embedded profile to sRGB; leave others alone."""
    profile = image.info.get("icc_profile")
    if profile is None or image.mode != "RGB":
        return image
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(opened):
        return image
    ImageCms.profileToProfile(image, opened, ImageCms.createProfile("sRGB"), inPlace=True)
    return image


def build_photographs(wheel: Path, out: Path, side: int = 256) -> None:
    """Write the freely usable photographs of scikit-image as small JPEG files."""
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in PHOTOGRAPHS:
            image = to_srgb(Image.open(io.BytesIO(archive.read(f"skimage/data/{name}"))))
            scale = side / min(image.size)
            small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
            small.info.clear()
            target = (out / name).with_suffix(".jpg")
            small.save(target, quality=90, optimize=True, subsampling=0)
            print(f"{target.name}: {small.width}x{small.height} {small.mode}, {target.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the image data embedded in smalti.")
    parser.add_argument("fashion", type=Path, help="folder with the four .gz idx files of Fashion-MNIST")
    parser.add_argument("wheel", type=Path, help="wheel of scikit-image")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="output folder (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    build_fashion(arguments.fashion, arguments.out)
    build_photographs(arguments.wheel, arguments.out / "photographs")


if __name__ == "__main__":
    main()
