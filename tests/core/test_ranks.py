"""Which of how many processes: the environment of torchrun. In a process alone nothing is shared, and nothing done.

Two take 5 seconds, which is how long silence is waited for.
"""

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from smalti.core import ranks
from smalti.core.errors import UsageError
from smalti.distributed import collectives
from smalti.distributed import process_group as group
from smalti.distributed.heartbeat import Heartbeat


def test_a_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()) == (0, 1, 0, 1)
    monkeypatch.setenv("RANK", "3")  # of some other program
    assert ranks.is_rank0()


def test_torchrun_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "8",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.local_world_size()) == (9, 16, 1, 8)
    assert (ranks.restarts(), ranks.is_rank0(), ranks.rank_name(3)) == (2, False, "rank 3 of 16")


def test_alone_everything_stays_as_it_is() -> None:
    values = torch.randn(3, requires_grad=True)
    assert collectives.all_reduce_sum(values) is values
    assert collectives.all_reduce_mean(values) is values
    assert collectives.all_gather(values) is values
    assert collectives.full_tensor(values) is collectives.local_shard(values) is values
    assert torch.equal(collectives.reversed_over_ranks(values), values.flip(0))
    assert collectives.all_reduce_max(3, 0) == [3, 0]
    assert collectives.all_gather_json({"a": 1}) == [{"a": 1}]
    assert collectives.from_rank0(lambda: "made") == "made"
    assert collectives.broadcast_tensors({"a": values})["a"] is values
    collectives.require_same("configuration", {"a": 1})
    group.barrier()
    with group.process_group(group.Ranks()), group.name_lost_rank():
        assert not torch.distributed.is_initialized()


def test_an_error_of_ours_passes_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="gloo"), group.name_lost_rank():
        raise RuntimeError("gloo, but there is no group")


def test_waiting_takes_some_time() -> None:
    with pytest.raises(UsageError, match=r"ranks.timeout is 0.0; use more than 0 seconds"):
        group.Ranks(timeout=0.0)


def test_where_to_meet_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    message = "no place to meet the others: MASTER_ADDR is '', MASTER_PORT is ''; start with torchrun"
    with pytest.raises(UsageError, match=message), group.process_group(group.Ranks()):
        pass


class Two:
    """Two ranks of this process, at one store."""

    def __init__(self) -> None:
        self.store = HashStore()
        self.one, self.other = (Heartbeat(self.store, rank, 2, hang_timeout=60) for rank in (0, 1))
        self.one.start()
        self.other.start()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = Two()
    yield made
    made.one.stop()
    made.other.stop()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_nobody_is_lost_while_all_beat(two: Two) -> None:
    assert two.one.diagnosis() == two.other.diagnosis() == ""


def test_the_last_word_of_a_rank_is_read(two: Two) -> None:
    two.other.leave("the disk is gone")
    two.other.leave()
    assert two.one.diagnosis() == "rank 1 of 2 has failed: the disk is gone"
    assert two.one.all_have_left(1)
    assert not two.other.all_have_left(0.2)


def test_who_has_left_has_ended(two: Two) -> None:
    two.other.leave()
    assert two.one.diagnosis() == "rank 1 of 2 has ended"


def test_who_has_left_sends_no_heartbeat_more(two: Two) -> None:
    """The server of the store may close then; libtorch would print a warning."""
    beating = two.other._thread
    two.other.leave()
    assert not beating.is_alive()
    assert two.one._thread.is_alive()


def test_silence_is_named(two: Two) -> None:
    two.other.stop()
    assert two.one.diagnosis() == ("rank 1 of 2 gives no sign of life: it is stopped, or its machine cannot be reached")


def test_a_process_that_is_gone_is_named_with_its_number(two: Two) -> None:
    two.other.stop()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    sign = two.store.get("beat/1").decode().split(" ", 2)[2]
    two.store.set("beat/1", f"7 {gone.stdout.strip()} {sign}")
    assert two.one.diagnosis() == f"rank 1 of 2 is gone (process {gone.stdout.strip()} on {platform.node()})"
    two.store.set("beat/1", f"7 {gone.stdout.strip()} pid:[1] elsewhere")  # there it may be another process
    assert "no sign of life" in two.one.diagnosis()


HUNG = """
import os, sys, time
os.environ["WORLD_SIZE"] = "2"
from torch.distributed import HashStore
from smalti.distributed import heartbeat
heartbeat._GRACE = 0.5
store = HashStore()
other = heartbeat.Heartbeat(store, 1, 2, hang_timeout=60)
one = heartbeat.Heartbeat(store, 0, 2, hang_timeout=1)
one.start()
def wait_in_vain():
    time.sleep(60)
wait_in_vain()
"""


def test_a_process_whose_main_thread_hears_nothing_is_ended() -> None:
    """E03. As with NCCL, whose operations wait without an end."""
    ended = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, env=os.environ, timeout=60)
    assert ended.returncode == 8, ended.stderr
    first = ended.stderr.splitlines()[0]
    assert first.startswith(
        "error: rank 1 of 2 gives no sign of life: it is stopped, or its machine cannot be reached;"
    )
    assert first.endswith("; seen by rank 0 of 2; this is where it was waited for:")
    assert "in wait_in_vain" in ended.stderr
