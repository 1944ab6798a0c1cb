"""Feature maps of an exported backbone in timm: what segmentation and detection code takes.

    smalti export runs/beit --to timm --out exported/timm
    python examples/features_with_timm.py exported/timm photo.jpg

smalti is not needed here.
"""

import argparse
from collections.abc import Sequence

import timm
import torch
from PIL import Image


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the shapes of what timm computes for an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("image")
    given = parser.parse_args(arguments)

    model = timm.create_model(f"local-dir:{given.folder}", pretrained=True).eval()
    maps = timm.create_model(
        f"local-dir:{given.folder}", pretrained=True, features_only=True, out_indices=(-2, -1)
    ).eval()
    config = timm.data.resolve_model_data_config(model)
    channels = config["input_size"][0]
    image = Image.open(given.image).convert("RGB" if channels == 3 else "L")
    pixels = timm.data.create_transform(**config)(image)[None]
    with torch.no_grad():
        print(f"features: {tuple(model(pixels).shape)}")
        for found in maps(pixels):
            print(f"feature map: {tuple(found.shape)}")


if __name__ == "__main__":
    main()
