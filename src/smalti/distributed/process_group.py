"""The process group of a distributed run: joining it, leaving it, and naming a rank that is lost."""

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import ProcessGroup

from smalti.core.compute import Device
from smalti.core.config import require, setting
from smalti.core.errors import DistributedError, SmaltiError, StoppedError
from smalti.core.ranks import is_rank0, local_rank, local_world_size, rank, rank_name, restarts, world_size
from smalti.distributed.heartbeat import Heartbeat

_FOR_EVER = timedelta(days=365)
_LEAVE_TIMEOUT = 5.0
"""Seconds that rank 0, which hosts the store, waits so that others can read why it ends."""


@dataclass(frozen=True)
class Ranks:
    """How long the processes of a run wait for each other; unused in a run of one process."""

    join_timeout: float = setting(300.0, "seconds until all have started")
    timeout: float = setting(600.0, "seconds until all are at the same place of a step; then one counts as hung")

    def __post_init__(self) -> None:
        for name in ("join_timeout", "timeout"):
            require(getattr(self, name) > 0, f"ranks.{name} is {getattr(self, name)}", "use more than 0 seconds")


@dataclass(frozen=True)
class _Group:
    """The state of the process group of this run.

    Attributes:
        untimed: a second group, whose operations have no timeout.
        store: where all meet; of rank 0 the server too, which closes with the last reference to it.
    """

    heartbeat: Heartbeat
    untimed: ProcessGroup
    store: Store


_group: _Group | None = None
"""One per process, like torch's default group; None in a run of one process."""


@contextmanager
def process_group(ranks: Ranks, device: Device = "auto") -> Iterator[None]:
    """Join the process group, if this run has several processes, and leave it at the end of the block.

    Inside such a block nothing is joined or left.

    Raises:
        DistributedError: not all processes have joined, or one is lost; the message names it.
    """
    global _group
    if world_size() == 1 or _group is not None:
        yield
        return
    _group = _join(ranks, device)
    try:
        with name_lost_rank():
            yield
        _leave("left")
    except StoppedError:
        _leave("left")
        raise
    except BaseException as error:
        _leave(f"{type(error).__name__}: {error}" if not isinstance(error, SmaltiError) else f"{error}")
        raise


@contextmanager
def name_lost_rank() -> Iterator[None]:
    """Turn the failure of a collective in the block into an error that names the lost rank.

    After any error in the block, the heartbeat no longer ends this process.

    Raises:
        DistributedError: another process is lost.
    """
    try:
        yield
    except BaseException as error:
        if _group is None:
            raise
        _group.heartbeat.disarm()
        if not _is_of_group(error):
            raise
        found = _group.heartbeat.diagnosis() or "a process is alive and does not come to where the others wait"
        if "Timed out" in f"{error}":
            traceback.print_exc()  # shows which collective this process was in
        cause = "" if "has failed" in found else _error_text(error)
        fix = "see its own message; the run goes on from its last checkpoint with --resume"
        raise DistributedError(found, cause=cause, fix=fix) from error


def barrier() -> None:
    """Wait until every rank has called this, without a timeout."""
    if _group is not None:
        dist.barrier(_group.untimed)


def _join(ranks: Ranks, device: Device) -> _Group:
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    require(
        bool(address) and port.isdigit(),
        f"no place to meet the others: MASTER_ADDR is '{address}', MASTER_PORT is '{port}'",
        "start with torchrun",
    )
    where, prefix = f"{address}:{port}", f"smalti/{restarts()}"
    hosts = is_rank0() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    timeout = timedelta(seconds=ranks.join_timeout)
    store = PrefixStore(prefix, _open_store(address, int(port), hosts, timeout))
    beats = PrefixStore(prefix, _open_store(address, int(port), False, timeout))
    heartbeat = Heartbeat(beats, rank(), world_size(), ranks.timeout)
    _wait_for_all(store, where, timeout)
    heartbeat.start()
    with_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if with_gpus:
        require(
            local_rank() < torch.cuda.device_count(),
            f"{local_world_size()} processes on a machine with {torch.cuda.device_count()} GPUs",
            f"use torchrun --nproc-per-node {torch.cuda.device_count()}",
        )
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if with_gpus else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=rank(),
            world_size=world_size(),
            timeout=timedelta(seconds=ranks.timeout),
        )
        untimed = dist.new_group(backend="gloo", timeout=_FOR_EVER)
        assert isinstance(untimed, ProcessGroup)
        return _Group(heartbeat, untimed, store)
    except RuntimeError as error:
        heartbeat.stop()
        cause = heartbeat.diagnosis() or _error_text(error)
        raise DistributedError(f"cannot join the others at {where}", cause=cause) from error


def _open_store(address: str, port: int, hosts: bool, timeout: timedelta) -> Store:
    """A client of the store at an address; with `hosts` this process is its server too."""
    try:
        return TCPStore(address, port, world_size(), hosts, timeout, wait_for_workers=False)
    except RuntimeError as error:
        text = f"{error}".splitlines()[0]
        if "EADDRINUSE" in text or "address already in use" in text:
            raise DistributedError(
                f"cannot listen at {address}:{port}",
                cause="another process has that port",
                fix="use another one: torchrun --master-port, or MASTER_PORT",
            ) from error
        raise DistributedError(
            f"cannot reach {address}:{port} within {timeout.total_seconds():g} s",
            cause=f"{rank_name(0)} does not run there, or the address is wrong",
            fix="check MASTER_ADDR and MASTER_PORT (torchrun --master-addr, --master-port)",
        ) from error


def _wait_for_all(store: Store, where: str, timeout: timedelta) -> None:
    keys = {number: f"come/{number}" for number in range(world_size())}
    store.set(keys[rank()], "yes")
    try:
        store.wait(list(keys.values()), timeout)
    except RuntimeError as error:
        missing = []
        with suppress(RuntimeError):
            missing = [number for number, key in keys.items() if not store.check([key])]
        which = ", ".join(f"rank {number}" for number in missing) or "the place where all meet"
        raise DistributedError(
            f"{which} of {world_size()} did not come to {where} within {timeout.total_seconds():g} s",
            fix="see why it did not start; raise --ranks.join-timeout where machines start slowly",
        ) from error


def _leave(why: str) -> None:
    """Leave the group and tell the others why; the process that hosts the store waits until they have read it."""
    global _group
    if _group is None:
        return
    left, _group = _group, None
    left.heartbeat.leave(why)
    dist.destroy_process_group()  # collectives that wait for this process fail now, and their ranks read why
    if is_rank0():
        left.heartbeat.all_have_left(_LEAVE_TIMEOUT)


def _error_text(error: BaseException) -> str:
    """The first line of the message of a failed collective, without source location and advice."""
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", f"{error}".splitlines()[0]).split(". ")[0]


def _is_of_group(error: BaseException) -> bool:
    """Whether the error comes from a collective, or from another operation that waits for a process."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in f"{error}" for word in ("gloo", "NCCL", "ProcessGroup"))
    )
