"""Collectives of a distributed run: what ranks sum, gather and broadcast.

In a run of one process every function returns its input. Otherwise all ranks call each function, in the same order.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.errors import DistributedError
from smalti.core.ranks import is_rank0, rank, rank_name, world_size
from smalti.distributed.process_group import barrier

T = TypeVar("T")


def all_reduce_sum(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The elementwise sum over all ranks, without a gradient."""
    if world_size() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def all_reduce_mean(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The elementwise mean over all ranks; its gradient with respect to the values of this rank is that of their sum.

    Averaging gradients over ranks, as data parallelism does, then gives the gradient of the mean.
    """
    if world_size() == 1:
        return values
    return values + (all_reduce_sum(values) / world_size() - values).detach()


def all_gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, concatenated in order of rank; every rank has the same number of rows."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def reversed_over_ranks(rows: Tensor) -> Tensor:
    """This rank's part of the rows of all ranks in reverse order: the reversed rows of rank `world_size - 1 - rank`."""
    across = world_size() - 1 - rank()
    if across == rank():
        return rows.flip(0)
    theirs = torch.empty_like(rows, memory_format=torch.contiguous_format)
    both = [dist.P2POp(dist.isend, rows.contiguous(), across), dist.P2POp(dist.irecv, theirs, across)]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    return theirs.flip(0)


def all_reduce_max(*numbers: int) -> list[int]:
    """The maximum of each number over all ranks."""
    if world_size() == 1:
        return list(numbers)
    shared = torch.tensor(numbers)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [int(number) for number in shared]


def all_gather_json(value: Any) -> list[Any]:
    """One JSON value from every rank, in order of rank."""
    if world_size() == 1:
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [int(length) for length in all_gather(torch.tensor([len(own)]))]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(own)] = own
    texts = all_gather(padded).view(world_size(), -1)
    return [json.loads(bytes(text[:length].tolist())) for text, length in zip(texts, lengths, strict=True)]


def gather_bytes(own: bytes) -> list[bytes]:
    """What every rank has, in order of rank, on rank 0; nothing on the others."""
    if world_size() == 1:
        return [own]
    lengths = [int(length) for length in all_gather(torch.tensor([len(own)]))]
    if not is_rank0():
        if own:
            dist.send(torch.frombuffer(bytearray(own), dtype=torch.uint8), 0)
        return []
    parts = [own]
    for number, length in enumerate(lengths[1:], 1):
        part = torch.empty(length, dtype=torch.uint8)
        if length:
            dist.recv(part, number)
        parts.append(part.numpy().tobytes())
    return parts


def from_rank0(make: Callable[[], T]) -> T:
    """The JSON value that `make` returns on rank 0; the others wait for it without a timeout."""
    if world_size() == 1:
        return make()
    made = make() if is_rank0() else None
    barrier()
    shared: T = all_gather_json(made)[0]
    return shared


def broadcast_precision(compute: Compute) -> Compute:
    """The same, with the precision that rank 0 has found to be the fastest."""
    narrow = from_rank0(lambda: compute.dtype == torch.bfloat16)
    return replace(compute, dtype=torch.bfloat16 if narrow else torch.float32)


def broadcast_tensors(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The CPU tensors of rank 0, on every rank; the others pass None. They are sent one by one."""
    if world_size() == 1:
        return dict(tensors or {})
    about = from_rank0(lambda: [(name, str(t.dtype), list(t.shape)) for name, t in (tensors or {}).items()])
    found = {}
    for name, dtype, shape in about:
        value = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        if tensors is not None:
            value = tensors[name].contiguous()
        dist.broadcast(value, 0)
        found[name] = value
    return found


def broadcast_from(source: int, rows: Tensor) -> None:
    """Overwrite a CPU tensor with that of another rank."""
    if world_size() > 1:
        dist.broadcast(rows, source)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over ranks."""
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor  # takes a second, so not in a run of one process

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole of tensors that may be sharded; the sharded ones are returned on rank 0 only, on its CPU."""
    found = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if full is tensor:
            found[name] = tensor
        elif is_rank0():
            found[name] = full.cpu()
    return found


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the tensor itself where it is not sharded; not a copy."""
    if world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copy_into(tensor: Tensor, values: Tensor) -> None:
    """Copy values, which every rank has in full, into a tensor that may be sharded."""
    if world_size() == 1:
        tensor.copy_(values)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        values = values.to(tensor.device, tensor.dtype)
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def distribute_like(tensor: Tensor, values: Tensor) -> Tensor:
    """A new tensor with the type, device and shards of `tensor`, from values that every rank has in full."""
    copy = torch.empty_like(tensor)
    copy_into(copy, values)
    return copy


def require_same(kind: str, about: Mapping[str, Any]) -> None:
    """Check that all ranks have the same settings.

    Args:
        kind: what is compared, as messages call it.
        about: the values to compare, by name.

    Raises:
        DistributedError: on all ranks, where one differs from rank 0; it names the first such rank and its values.
    """
    first, *others = all_gather_json(dict(about))
    for number, other in enumerate(others, 1):
        differing = [name for name in first | other if first.get(name) != other.get(name)]
        if differing:
            shown = [f"{name} is {other.get(name)}, and {first.get(name)} on rank 0" for name in differing[:5]]
            raise DistributedError(
                f"{rank_name(number)} has another {kind}: {', '.join(shown)}",
                fix="start all ranks with the same command, on the same files",
            )
