"""Reading a network or a state dict from a file of `torch.save`, as tensors by name, without running code in it."""

import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from smalti.core.errors import CheckpointError
from smalti.core.log import Log, printable
from smalti.weights.pickled import Call, Instance, Value
from smalti.weights.torch_file import PARAMETER, TENSOR, SparingFile, Storage, Storages, read_file

_MAX_MODULES, _MAX_TENSORS, _MAX_NAME, _NAMED = 2000, 2000, 200, 6
_INSIDE = ("model", "state_dict", "model_state_dict", "module", "net")
"""Keys under which training programs store a state dict."""
_INERT = (
    *("argparse.Namespace", "collections.defaultdict", "builtins.list", "builtins.dict", "_codecs.encode"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "datetime.datetime"),
    *("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct", "torch.Size"),
    *("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"),
    *("omegaconf.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "lightly_train."),
)
"""What training programs store beside weights: arguments, settings, numbers of numpy, states of generators."""

T = TypeVar("T")

_DAMAGE = (ValueError, KeyError, OverflowError, EOFError, NotImplementedError, struct.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class SavedNetwork:
    """A network in a file: the name of its class, and its parameters in float32 by their dotted names."""

    kind: str
    parameters: dict[str, Tensor]


def read_network(path: Path, classes: frozenset[str]) -> SavedNetwork:
    """The parameters of a network that was saved as a whole module.

    Args:
        classes: names of the module classes that it may contain.

    Raises:
        CheckpointError: it is not such a file, is damaged, or refers to anything else.
    """

    def network(root: Value, storages: Storages, size: int) -> SavedNetwork:
        if not isinstance(root, Instance):
            raise ValueError(f"it holds a {type(root).__name__.lower()}, not a network")
        return SavedNetwork(root.kind, dict(_tensors(_parameters(root), storages, size)))

    return _read(path, classes, network)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, in float32 by name; it may be the value of `model`, `state_dict` or the like.

    What else a training program has stored is not read; one line names it.

    Raises:
        CheckpointError: as in `read_network`.
    """

    def weights(root: Value, storages: Storages, size: int) -> dict[str, Tensor]:
        inside = next((key for key in _INSIDE if isinstance(root, dict) and isinstance(root.get(key), dict)), None)
        found = root if inside is None else root[inside]
        if not isinstance(found, dict):
            raise ValueError("it holds no state dict")
        described = {name: value for name, value in found.items() if isinstance(value, Call)}
        others = [name for name in found if name not in described]
        others += [] if inside is None else [name for name in root if name != inside]
        if described and others:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            Log().say(f"{path.name}: beside the weights, left aside: {', '.join(others[:_NAMED])}{more}")
        return dict(_tensors((described or found).items(), storages, size))

    return _read(path, frozenset(), weights, _INERT)


def _read(
    path: Path, classes: frozenset[str], take: Callable[[Value, Storages, int], T], inert: tuple[str, ...] = ()
) -> T:
    """The result of `take` for the object in a file, its storages, and the length of the file in bytes."""
    name = printable(path.name)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with SparingFile(path) as file:
            return take(*read_file(file, name, classes, inert), file.size)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {printable(str(path))}", cause=error.strerror or str(error), fix="check the path"
        ) from None
    except _DAMAGE as error:
        cause = str(error) if type(error) is ValueError else "it is damaged"
        fix = "nothing was run; get the file again"
        raise CheckpointError(f"{name} cannot be read", cause=cause, fix=fix) from None


def _tensors(described: Iterable[tuple[str, Value]], storages: Storages, limit: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors by name; together at most `limit` bytes, so that many views of one storage cannot fill the memory."""
    found: dict[str, Tensor] = {}
    total = 0
    for number, (name, value) in enumerate(described):
        if number >= _MAX_TENSORS or len(name) > _MAX_NAME:
            raise ValueError(f"it has more than {_MAX_TENSORS} tensors, or a name of more than {_MAX_NAME} characters")
        storage, offset, size, stride = _description(value)
        total += math.prod(size) * storage.dtype.itemsize
        if total > limit:
            raise ValueError("its tensors hold more numbers than the file")
        if storage.key not in found:
            found[storage.key] = storages.values(storage)
        yield (
            name,
            found[storage.key]
            .as_strided(size, stride, offset)
            .to(torch.float32, copy=True, memory_format=torch.contiguous_format),
        )


def _parameters(root: Instance) -> Iterator[tuple[str, Value]]:
    """Name and description of every parameter of a module and its submodules."""
    waiting, visited = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        visited += 1
        if visited + len(waiting) > _MAX_MODULES or len(prefix) > _MAX_NAME:
            raise ValueError(f"it has more than {_MAX_MODULES} modules, or its modules contain one another")
        parameters, children = (module.state.get(part) for part in ("_parameters", "_modules"))
        if not isinstance(parameters, dict) or not isinstance(children, dict):
            raise ValueError(f"its {module.kind} is no module")
        yield from ((prefix + name, value) for name, value in parameters.items() if value is not None)
        waiting += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, Instance)]


def _description(value: Value) -> tuple[Storage, int, tuple[int, ...], tuple[int, ...]]:
    """Storage, offset, shape and strides of a tensor or parameter, checked against the size of the storage."""
    match value:
        case Call(function, (Call() as tensor, *_)) if function == PARAMETER:
            value = tensor
    match value:
        case Call(function, (Storage() as storage, int(offset), tuple(size), tuple(stride), *_)):
            named = function == TENSOR and len(size) == len(stride) <= 4
            if named and all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
                last = offset + sum((number - 1) * step for number, step in zip(size, stride, strict=True))
                if 0 < math.prod(size) <= storage.num_values and last < storage.num_values:
                    return storage, offset, size, stride
    raise ValueError("it describes a parameter that is not in the file")
