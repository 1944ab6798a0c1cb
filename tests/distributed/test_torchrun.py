"""Ranks under torchrun, which starts them again where one is lost, and passes signals on. Half a minute each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.distributed.started import started
from tests.distributed.test_failures import command, metrics_if_any, step_of
from tests.small_runs import metrics, pictures, weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("torchrun") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """What two ranks end in that nothing happens to."""
    run = photos.parent / "whole"
    with started(photos.parent, [command(photos, run, "--plan.save-every", "2")] * 2) as ranks:
        assert ranks.all_codes() == [0, 0], ranks.text(0)
    return run


@contextmanager
def torchrun(said: Path, arguments: list[str], *flags: str, fault: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Two ranks under torchrun, and none of them left at the end."""
    program = [str(ROOT / "tests" / "distributed" / "program.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "FAULT": fault}
    with open(said, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *flags, *program],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # it ends its ranks, which are in sessions of their own
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
        process.kill()
        process.wait()


def test_e02_torchrun_starts_them_again_and_they_end_in_the_same_bytes(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    arguments = command(photos, run, "--plan.save-every", "2")
    with torchrun(said, arguments, "--max-restarts", "3", fault="kill:5@1") as process:
        assert process.wait(timeout=300) == 0, said.read_text()
    assert "going on from step 4 after restart 1 by torchrun" in said.read_text()
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)


def test_e02_also_before_the_first_checkpoint(photos: Path, whole: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    arguments = command(photos, run, "--plan.save-every", "2")
    with torchrun(said, arguments, "--max-restarts", "3", fault="kill:1@0") as process:
        assert process.wait(timeout=300) == 0, said.read_text()
    assert "no checkpoint yet: starting from step 0" in said.read_text()
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)


def test_e03_one_that_is_stopped_is_started_again(photos: Path, whole: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    arguments = command(photos, run, "--plan.save-every", "2", "--ranks.timeout", "5")
    flags = ["--max-restarts", "1", "--shutdown-timeout", "2"]
    with torchrun(said, arguments, *flags, fault="stop:5@1") as process:
        assert process.wait(timeout=300) == 0, said.read_text()
    assert "rank 1 of 2 gives no sign of life" in said.read_text()
    assert weights(run)["model.safetensors"] == weights(whole)["model.safetensors"]


@pytest.mark.parametrize("to_all", [False, True], ids=["to torchrun", "to all, as a scheduler does"])
def test_e11_sigterm_ends_all_after_the_same_step(to_all: bool, photos: Path, whole: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    arguments = command(photos, run, "--plan.save-every", "2")
    with torchrun(said, arguments, fault="slow:3@0") as process:
        until = time.monotonic() + 120
        while len(metrics_if_any(run)) < 3:
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.05)
        if to_all:
            for pid in ranks_of(process.pid):
                os.kill(pid, signal.SIGTERM)
        process.terminate()
        process.wait(timeout=120)
    text = said.read_text()
    assert text.count("stopped: rank 0 of 2: pretrain after step 4, saved; on SIGTERM") == 1, text
    assert "error: " not in text
    assert step_of(run) == 4
    with started(tmp_path, [["pretrain", "--resume", str(run)]] * 2) as ranks:
        assert ranks.all_codes() == [0, 0], ranks.text(0)
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)


def ranks_of(agent: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for parent, pid in map(str.split, listed.splitlines()) if int(parent) == agent]
