"""Files like those that the DALL-E tokenizer was published in, honest and hostile, made without the package dall_e."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from smalti.tokenizers.dalle import DallETokenizer


class Conv2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.use_float16, self.device = True, torch.device("cpu")


class EncoderBlock(nn.Module):
    pass


class DecoderBlock(nn.Module):
    pass


class Encoder(nn.Module):
    pass


class Decoder(nn.Module):
    pass


PLACES = {
    "dall_e.utils": (Conv2d,),
    "dall_e.encoder": (EncoderBlock, Encoder),
    "dall_e.decoder": (DecoderBlock, Decoder),
}


@contextmanager
def as_dall_e() -> Iterator[None]:
    """While it lasts, the classes above are those of the package dall_e."""
    modules = {name: ModuleType(name) for name in ("dall_e", *PLACES)}
    for name, classes in PLACES.items():
        modules[name].__file__ = __file__  # old files hold the source of the classes
        for cls in classes:
            cls.__module__ = name
            setattr(modules[name], cls.__name__, cls)
    with patch.dict(sys.modules, modules):
        yield


def halves(tokenizer: DallETokenizer) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder as the release names and nests them."""
    weights = {name: p.detach() for name, p in tokenizer.named_parameters()}
    encoder = _network(Encoder(), EncoderBlock, weights, {"embed": "input", "to_logits": "output.conv"}, "encoder.")
    decoder = _network(Decoder(), DecoderBlock, weights, {"codebook": "input", "to_pixels": "output.conv"}, "decoder.")
    encoder.get_submodule("blocks.group_1").add_module("pool", nn.MaxPool2d(2))
    decoder.get_submodule("blocks.group_1").add_module("upsample", nn.Upsample(scale_factor=2))
    return encoder, decoder


def _network(
    root: nn.Module, block: type[nn.Module], weights: dict[str, Tensor], layers: dict[str, str], groups: str
) -> nn.Module:
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        if layer in layers or name.startswith(groups):
            path = ["blocks", *layers.get(layer, layer.removeprefix(groups)).split(".")]
            place = root
            for part in path:
                if not hasattr(place, part):
                    new = block() if part.startswith("block_") else Conv2d() if part == path[-1] else nn.Sequential()
                    place.add_module(part, new)
                place = getattr(place, part)
            place.register_parameter(kind[0], nn.Parameter(value.clone(), requires_grad=False))
    root.get_submodule("blocks.output").add_module("relu", nn.ReLU())
    root.get_submodule("blocks.group_1.block_1").add_module("unused", nn.Identity())
    return root


def publish(tokenizer: DallETokenizer, folder: Path, zipped: bool = True) -> tuple[str, str]:
    """Write encoder.pkl and decoder.pkl."""
    paths = (folder / "encoder.pkl", folder / "decoder.pkl")
    with as_dall_e():
        for half, path in zip(halves(tokenizer), paths, strict=True):
            torch.save(half, path, _use_new_zipfile_serialization=zipped)
    return str(paths[0]), str(paths[1])


@dataclass
class Outside:
    """Something that the pickle refers to by a persistent id."""

    identity: Any


class Reduced:
    """Something that the pickle makes by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.wish = (function, arguments)

    def __reduce__(self) -> Any:
        return self.wish


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        return thing.identity if isinstance(thing, Outside) else None


def pickled(thing: Any, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    with as_dall_e():
        _Pickler(file, protocol).dump(thing)
    return file.getvalue()


def storage(key: Any = "0", num_values: Any = 4, dtype: Any = torch.FloatStorage, kind: str = "storage") -> Outside:
    return Outside((kind, dtype, key, "cpu", num_values))


def parameter(*description: Any) -> Reduced:
    """A parameter of storage, offset, size and stride."""
    tensor = Reduced(torch._utils._rebuild_tensor_v2, *description, False, OrderedDict())
    return Reduced(torch._utils._rebuild_parameter, tensor, False, OrderedDict())


def network(**state: Any) -> Encoder:
    """An encoder with nothing in it but this state."""
    module = Encoder.__new__(Encoder)
    module.__dict__.update({"_parameters": {}, "_modules": {}} | state)
    return module


def archive(pickle_bytes: bytes, storages: dict[str, bytes] | None = None, compression: int = 0) -> bytes:
    """A zip file of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("encoder/data.pkl", pickle_bytes)
        for key, data in (storages or {}).items():
            made.writestr(f"encoder/data/{key}", data)
    return file.getvalue()
