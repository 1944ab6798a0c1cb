"""What the visual tokens in a cache depend on: a run with another key must not read them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch

from smalti.core.compute import Compute
from smalti.core.config import to_json
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.tokens.tokens import CHUNK
from smalti.data.transforms.views import TwoViews
from smalti.tokenizers.image_tokenizer import ImageTokenizer

VERSION = 1
"""To be raised by whoever changes the pixels of a view, or the files of a token cache."""

_SHOWN = 12


@dataclass(frozen=True)
class TokenKey:
    """All that can change a visual token of a view, but for epoch and image.

    The number of cycled views is not among it: view v of an image is the same, however many there are.

    Attributes:
        tokenizer: digest of its weights and configuration.
        vocab_size: visual tokens.
        num_patches: visual tokens of an image.
        data: digest of the images.
        num_images: how many there are.
        memory: crops are cut from squares in memory, or from whole pictures.
        channels, side: of the images; side is None where they are streamed.
        views: crop, sizes and colours.
        seed: what views are drawn from.
        device, dtype, mode: where, in which number format and how the tokenizer computes.
        chunk: images it is given at a time.
        torch, numpy, decoder: versions of what computes pixels and tokens; decoder is None where pixels are in memory.
        version: of smalti's own part in it.
    """

    tokenizer: str
    vocab_size: int
    num_patches: int
    data: str
    num_images: int
    memory: Literal["resident", "stream"]
    channels: int
    side: int | None
    views: TwoViews
    seed: int
    device: str
    dtype: str
    decoder: str | None
    mode: str = "eager"
    chunk: int = CHUNK
    torch: str = str(torch.__version__)
    numpy: str = np.__version__
    version: int = VERSION

    def differences(self, there: dict[str, Any]) -> list[str]:
        """Every field in which a key read from a file differs from this one, with both values."""
        here = dict(_flat(json.loads(json.dumps(to_json(self)))))
        found = dict(_flat(there))
        names = list(here) + [name for name in found if name not in here]
        return [
            f"{name}: there {_shown(found, name)}, here {_shown(here, name)}"
            for name in names
            if name not in here or name not in found or here[name] != found[name]
        ]


def token_key(
    source: ImageDataset,
    views: TwoViews,
    seed: int,
    tokenizer: ImageTokenizer,
    compute: Compute,
    chunk: int = CHUNK,
) -> TokenKey:
    """The key of a run. Of images in memory all pixels are read, of others all names."""
    pixels = source.pixels
    height, width = views.size if views.token_size is None else views.token_size
    return TokenKey(
        tokenizer=digest(tokenizer),
        vocab_size=tokenizer.vocab_size,
        num_patches=(height // tokenizer.stride) * (width // tokenizer.stride),
        data=source.fingerprint(),
        num_images=len(source),
        memory="stream" if pixels is None else "resident",
        channels=source.channels,
        side=None if pixels is None else pixels.shape[2],
        views=views,
        seed=seed,
        device=_device(compute.device),
        dtype=str(compute.dtype).removeprefix("torch."),
        chunk=chunk,
        decoder=f"Pillow {_version('pillow')}, simplejpeg {_version('simplejpeg')}" if pixels is None else None,
    )


def digest(tokenizer: ImageTokenizer) -> str:
    """SHA-256 over configuration and weights."""
    found = hashlib.sha256(json.dumps(to_json(tokenizer.config), sort_keys=True).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _device(device: torch.device) -> str:
    """The kind of processor: another one rounds otherwise."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested objects by their dotted names."""
    if not isinstance(value, dict):
        yield prefix.removesuffix("."), value
        return
    for name, item in value.items():
        yield from _flat(item, f"{prefix}{name}.")


def _shown(fields: dict[str, Any], name: str) -> str:
    """A value for people; of a digest the beginning."""
    text = str(fields.get(name, "nothing"))
    return text if len(text) <= 5 * _SHOWN else f"{text[:_SHOWN]}..."
