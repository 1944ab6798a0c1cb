"""A fine-tuned classifier in thirty lines, without torch: onnxruntime, NumPy and Pillow.

smalti export runs/classes --to onnx --out exported/onnx
python examples/classify_with_onnx.py exported/onnx photo.jpg
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the three most likely classes of an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("image")
    given = parser.parse_args(arguments)

    session = onnxruntime.InferenceSession(str(given.folder / "model.onnx"))
    _, channels, height, width = session.get_inputs()[0].shape
    image = Image.open(given.image).convert("RGB" if channels == 3 else "L")
    pixels = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC), np.float32) / 255
    batch = pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)  # the graph normalises by itself
    (scores,) = session.run(None, {session.get_inputs()[0].name: batch})
    shares = np.exp(scores[0] - scores[0].max())
    names = json.loads((given.folder / "classes.json").read_text())
    for place in np.argsort(-shares)[:3]:
        print(f"{shares[place] / shares.sum():6.1%}  {names[place]}")


if __name__ == "__main__":
    main()
