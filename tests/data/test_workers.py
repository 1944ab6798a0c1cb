"""Workers render what one process renders, whatever happens to them (F01 to F06).

Some take 5 seconds: programs that start from nothing.
"""

import gc
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.core.errors import DataError
from smalti.data.workers.jobs import Bad, InlineRenderer, Job, Rendered, Renderer, Task, candidates
from smalti.data.workers.workers import Workers
from tests.data.worker_jobs import Noise, task

ROOT = Path(__file__).parent.parent.parent
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def workers(said: list[str]) -> Iterator[Callable[..., Workers]]:
    """Begins workers that end with the test."""
    begun: list[Workers] = []

    def begin(job: Job, num_workers: int = 2, batch_size: int = 16, **options: Any) -> Workers:
        begun.append(Workers(job, batch_size, num_workers, say=said.append, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def assert_same(one: Rendered, other: Rendered) -> None:
    assert len(one.arrays) == len(other.arrays)
    assert all(np.array_equal(a, b) for a, b in zip(one.arrays, other.arrays, strict=True))
    assert np.array_equal(one.shown, other.shown)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def all_gone(pids: Sequence[int], seconds: float = 20.0) -> bool:
    """Wait for that."""
    deadline = time.monotonic() + seconds
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return all(map(gone, pids))


def children(pid: int) -> list[int]:
    """All processes that descend from one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grandchild for child in found for grandchild in children(child)]


def shared_by_name(pid: int) -> list[str]:
    """Shared memory and semaphores of a process that would stay behind if it and all its family were killed."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_render_what_one_process_renders(
    workers: Callable[..., Workers], said: list[str], num_workers: int
) -> None:
    job = Noise(trouble={3: "bad", 4: "bad", 9: "memory"})
    many, alone = workers(job, num_workers), InlineRenderer(job)
    chance = random.Random(0)
    tasks = [task(*(chance.randrange(50) for _ in range(rows)), seed=rows) for rows in (16, 16, 1, 5, 16, 0, 11)]
    for step, one in enumerate(tasks):
        many.prefetch(tasks[step : step + 3])
        result, expected = many(one), alone(one)
        assert_same(result, expected)
        assert result.bad == expected.bad
    assert said == []


@pytest.mark.slow
def test_where_forking_is_not_safe_as_on_macos_workers_are_spawned(
    workers: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new interpreter, which imports what it needs: a few seconds."""
    monkeypatch.setattr(sys, "platform", "darwin")
    job = Noise(trouble={3: "bad"})
    spawned = workers(job, 1)
    assert_same(spawned(task(1, 2, 3)), InlineRenderer(job)(task(1, 2, 3)))


def test_a_row_shows_its_image_with_its_key() -> None:
    rendered = InlineRenderer(Noise())(Task(np.array([5, 6]), np.array([7, 2**64 - 1], np.uint64)))
    expected = [np.empty((3, 4, 5), np.uint8), np.empty(7, np.uint8)]
    for row, (position, key) in enumerate([(5, 7), (6, 2**64 - 1)]):
        Noise()(position, key, expected)
        assert all(np.array_equal(array[row], one) for array, one in zip(rendered.arrays, expected, strict=True))


def test_expected_or_not_each_batch_is_the_one_asked_for(workers: Callable[..., Workers], said: list[str]) -> None:
    """Slots are used again while workers are busy with batches that nobody wants any more."""
    job = Noise(seconds=0.001)
    many, alone = workers(job, 2, ahead=2), InlineRenderer(job)
    chance = random.Random(1)
    tasks = [task(*(chance.randrange(50) for _ in range(chance.choice((1, 8, 16)))), seed=seed) for seed in range(12)]
    step = 0
    for _ in range(60):
        step = (step + 1) % 12 if chance.random() < 0.5 else chance.randrange(12)
        if chance.random() < 0.7:
            start = step if chance.random() < 0.7 else chance.randrange(12)
            for _ in range(chance.choice((1, 2))):
                many.prefetch((tasks + tasks)[start : start + chance.randrange(6)])
        assert_same(many(tasks[step]), alone(tasks[step]))
    assert said == []


def test_batches_that_are_expected_are_rendered_before_they_are_asked_for(
    workers: Callable[..., Workers], tmp_path: Path
) -> None:
    marked = {position: "once " for position in range(50)}
    many = workers(Noise(trouble=marked, folder=tmp_path), 1, ahead=2)
    tasks = [task(0, 1), task(2, 3), task(4, 5), task(6, 7)]
    many.prefetch(tasks)
    until(lambda: {path.name for path in tmp_path.iterdir()} == set("012345"))  # there are three slots
    many(tasks[0])  # in use, so its slot is not free yet
    many(tasks[1])
    until(lambda: {path.name for path in tmp_path.iterdir()} == set("01234567"))


def test_what_is_left_of_a_dropped_batch_is_skipped(workers: Callable[..., Workers], tmp_path: Path) -> None:
    marked = {position: "once slow " for position in range(8)}
    many = workers(Noise(trouble=marked, folder=tmp_path), 1)
    many.prefetch([task(*range(8))])
    until(lambda: list(tmp_path.iterdir()))
    many(task(20))
    assert not (tmp_path / "7").exists()


def test_what_came_up_is_told_in_the_order_of_the_rows(workers: Callable[..., Workers]) -> None:
    trouble = {0: "slow bad", 1: "bad", 2: "slow bug", 3: "bad", 4: "bug"}
    many, alone = workers(Noise(trouble=trouble), 3), InlineRenderer(Noise(trouble=trouble))
    two = task(0, *[9] * 8, 1)
    assert many(two).bad == alone(two).bad
    with pytest.raises(RuntimeError, match=r"^rendering image-2"):
        many(task(2, *[9] * 8, 4))


def test_arrays_are_not_touched_until_the_next_call(workers: Callable[..., Workers]) -> None:
    many = workers(Noise(), 1, ahead=1)
    tasks = [task(*range(seed, seed + 16), seed=seed) for seed in range(6)]
    many.prefetch(tasks)
    rendered = many(tasks[0])
    before = [array.copy() for array in rendered.arrays]
    many.prefetch(tasks)
    time.sleep(0.2)
    assert all(np.array_equal(one, other) for one, other in zip(before, rendered.arrays, strict=True))


@pytest.fixture(params=["inline", "workers"])
def renderer(request: pytest.FixtureRequest, workers: Callable[..., Workers]) -> Callable[..., Renderer]:
    return InlineRenderer if request.param == "inline" else workers


def test_an_image_that_cannot_be_read_is_replaced(renderer: Callable[..., Renderer]) -> None:
    first, second, third = [position for position, _ in zip(candidates(7, 50), range(3), strict=False)]
    job = Noise(trouble={first: "bad", second: "memory"})
    rendered = renderer(job)(task(1, 7))
    assert rendered.shown.tolist() == [1, third]
    assert rendered.bad == (Bad(7, "it is broken", False), Bad(second, "not enough memory", False))
    pixels = np.empty((3, 4, 5), np.uint8)
    Noise()(third, int(task(1, 7).keys[1]), [pixels, np.empty(7, np.uint8)])
    assert np.array_equal(rendered.arrays[0][1], pixels)


def test_nothing_but_images_that_cannot_be_read(renderer: Callable[..., Renderer]) -> None:
    one = renderer(Noise(4, dict.fromkeys(range(1, 4), "bad") | {0: "memory"}))
    for _ in range(2):  # an error is no reason to end the workers
        with pytest.raises(DataError) as caught:
            one(task(2, 3))
        assert str(caught.value) == "none of 4 images in a row can be read, first image-2.jpg; it is broken"


def test_what_is_quarantined_is_never_opened(renderer: Callable[..., Renderer]) -> None:
    first, second, third = [position for position, _ in zip(candidates(7, 50), range(3), strict=False)]
    rendered = renderer(Noise(trouble={first: "bug", second: "bug"}), quarantined={first, second})(task(7))
    assert (rendered.shown.tolist(), rendered.bad) == ([third], ())
    with pytest.raises(
        DataError, match=r"^none of 1 images in a row can be read, first image-0.jpg; it killed or hung"
    ):
        renderer(Noise(1), quarantined={0})(task(0))


def test_f01_a_killed_worker_loses_nothing(workers: Callable[..., Workers], said: list[str], tmp_path: Path) -> None:
    many, alone = workers(Noise(trouble={5: "once SIGKILL"}, folder=tmp_path), 2), InlineRenderer(Noise())
    tasks = [task(*range(seed, seed + 16), seed=seed) for seed in range(4)]
    many.prefetch(tasks)
    for one in tasks:
        result = many(one)
        assert_same(result, alone(one))
        assert result.bad == ()
    expected = "was killed (signal 9; out of memory?) while reading image-5.jpg; it was started again"
    assert said == [f"a data worker {expected}"]


def test_f01_workers_killed_while_nobody_looks(workers: Callable[..., Workers], said: list[str]) -> None:
    many, alone = workers(Noise(), 2), InlineRenderer(Noise())
    for seed in range(3):
        one = task(*range(16), seed=seed)
        assert_same(many(one), alone(one))
        for pid in many.pids:
            os.kill(pid, signal.SIGKILL)
    many.prefetch([task(0, 1)])
    assert_same(many(task(0, 1)), alone(task(0, 1)))
    # where the second is not needed, its death need not be noticed
    assert {"a data worker was killed (signal 9; out of memory?) while waiting; it was started again"} == set(said)


def test_f01_an_image_that_is_read_at_two_kills_is_quarantined(
    workers: Callable[..., Workers], said: list[str]
) -> None:
    many, alone = workers(Noise(trouble={5: "SIGKILL"}), 2), InlineRenderer(Noise(), quarantined={5})
    result = many(task(*range(16)))
    assert_same(result, alone(task(*range(16))))
    assert result.bad == (Bad(5, "killed its reader (signal 9)", True),)
    assert many(task(*[5] * 16)).bad == ()  # both workers know
    assert len(said) == 2
    assert said[1].endswith("while reading image-5.jpg; it was started again, and that image is not opened again")


def test_f02_an_image_that_crashes_its_reader_is_quarantined(workers: Callable[..., Workers], said: list[str]) -> None:
    trouble = {1: "SIGSEGV", 2: "SIGBUS", 6: "SIGABRT", 9: "SIGILL", 12: "SIGFPE"}
    many, alone = workers(Noise(trouble=trouble), 3), InlineRenderer(Noise(), quarantined=set(trouble))
    tasks = [task(*range(16)), task(*range(15, -1, -1)), task(*range(0, 32, 2))]
    many.prefetch(tasks)
    news: list[Bad] = []
    for one in tasks:
        result = many(one)
        assert_same(result, alone(one))
        news += result.bad
    assert sorted(news) == [
        Bad(position, f"killed its reader (signal {signal.Signals[name].value})", True)
        for position, name in trouble.items()
    ]
    line = "a data worker was killed (signal 11) while reading image-1.jpg; it was started again"
    assert f"{line}, and that image is not opened again" in said


def test_f02_an_image_that_ends_its_reader_is_quarantined(workers: Callable[..., Workers], said: list[str]) -> None:
    result = workers(Noise(trouble={1: "exit"}), 1)(task(0, 1, 2))
    assert_same(result, InlineRenderer(Noise(), quarantined={1})(task(0, 1, 2)))
    assert result.bad == (Bad(1, "ended its reader (exit code 3)", True),)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_f03_an_image_that_hangs_its_reader_is_quarantined(
    workers: Callable[..., Workers], said: list[str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    many = workers(Noise(trouble={5: "fifo"}, folder=tmp_path), 2, timeout=1.0)
    result = many(task(*range(16)))
    assert_same(result, InlineRenderer(Noise(), quarantined={5})(task(*range(16))))
    assert result.bad == (Bad(5, "no answer in 1 s", True),)
    line = "a data worker gave no answer in 1 s while reading image-5.jpg; it was started again"
    assert said == [f"{line}, and that image is not opened again"]


def test_f03_a_worker_that_was_stopped_for_a_while_does_not_hang(
    workers: Callable[..., Workers], said: list[str]
) -> None:
    """As after Ctrl-Z and fg."""
    many = workers(Noise(seconds=0.1), 1, timeout=0.5)
    many(task(0))
    many.prefetch([task(1, 2)])
    time.sleep(0.05)
    os.kill(many.pids[0], signal.SIGSTOP)
    time.sleep(0.6)
    threading.Timer(0.2, os.kill, (many.pids[0], signal.SIGCONT)).start()
    assert many(task(1, 2)).bad == ()
    assert said == []


def test_f04_memory_that_runs_out_is_told_and_not_held_against_the_image(workers: Callable[..., Workers]) -> None:
    many = workers(Noise(trouble={1: "memory"}), 1)
    for _ in range(2):
        assert many(task(0, 1)).bad == (Bad(1, "not enough memory", False),)


def test_f05_no_shared_memory() -> None:
    with pytest.raises(DataError) as caught:
        Workers(Noise(shapes=((1 << 30, 1 << 20),)), 16, 2, say=print)
    what, cause, fix = str(caught.value).split("; ")
    assert what == f"cannot share {3 * 16 * 2**30:.1f} MiB of images with data workers"
    assert cause == "No space left on device"
    assert fix == "use --num-workers 0 or a smaller batch"


def test_f05_shared_memory_that_may_not_be_had() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(DataError, match=r"^cannot share 48.0 MiB of .*; File too large; use --num-workers 0"):
            Workers(Noise(shapes=((1 << 20,),)), 16, 2, say=print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_f06_a_bug_fails_fast_and_is_no_bad_image(renderer: Callable[..., Renderer]) -> None:
    one = renderer(Noise(trouble={1: "bug"}))
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"^rendering image-1.jpg failed, and not because of the image"
        ) as caught:
            one(task(0, 1, 2))
        told = str(caught.value) + repr(caught.value.__cause__)
        assert "ZeroDivisionError" in told
        if isinstance(one, Workers):
            assert "worker_jobs.py" in told
    assert_same(one(task(0, 2)), InlineRenderer(Noise())(task(0, 2)))


def test_a_failure_ahead_is_raised_when_its_batch_is_asked_for(workers: Callable[..., Workers]) -> None:
    many = workers(Noise(trouble={1: "bug"}), 1)
    tasks = [task(0), task(1), task(2)]
    many.prefetch(tasks)
    many(tasks[0])
    with pytest.raises(RuntimeError):
        many(tasks[1])
    assert_same(many(tasks[2]), InlineRenderer(Noise())(tasks[2]))


@needs_proc
def test_workers_that_keep_dying_stop_the_run(workers: Callable[..., Workers], said: list[str]) -> None:
    many = workers(Noise(trouble=dict.fromkeys(range(50), "SIGKILL")), 1)
    with pytest.raises(DataError) as caught:
        many(task(*range(16)))
    cause = "the last one was killed (signal 9; out of memory?)"
    fix = "use fewer --num-workers, a smaller batch, or --num-workers 0"
    assert str(caught.value) == f"data workers keep dying; {cause}; {fix}"
    assert len(said) == 5
    assert all_gone(many.pids)
    with pytest.raises(RuntimeError, match="closed"):
        many(task(0))


@needs_proc
def test_closing_ends_busy_workers_and_may_be_done_twice(workers: Callable[..., Workers], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    many = workers(Noise(trouble={0: "fifo"}, folder=tmp_path), 2)
    many.prefetch([task(*range(16))])
    many.close()
    assert all_gone(many.pids, seconds=0)
    many.close()
    with pytest.raises(RuntimeError, match="closed"):
        many.prefetch([])


@needs_proc
def test_forgotten_workers_end() -> None:
    many = Workers(Noise(), 16, 2, say=print)
    pids = many.pids
    rendered = many(task(0))
    kept = rendered.arrays[0].copy()
    del many
    gc.collect()
    assert all_gone(pids)
    assert np.array_equal(rendered.arrays[0], kept)  # the memory outlives its renderer


@needs_proc
def test_an_interrupt_ends_the_workers(workers: Callable[..., Workers], tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    os.mkfifo(tmp_path / "pipe")
    many = workers(Noise(trouble={0: "fifo"}, folder=tmp_path), 1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            many(task(0))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert all_gone(many.pids, seconds=0)


def test_workers_do_not_answer_to_ctrl_c(workers: Callable[..., Workers], said: list[str]) -> None:
    many = workers(Noise(), 1)
    many(task(0))
    os.kill(many.pids[0], signal.SIGINT)
    many(task(1))
    assert said == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_copy_does_not_end_the_workers(workers: Callable[..., Workers], said: list[str]) -> None:
    many = workers(Noise(), 1)
    many(task(0))
    pid = os.fork()
    if pid == 0:
        many.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    many(task(1))
    assert said == []


def test_a_batch_that_is_too_large(workers: Callable[..., Workers]) -> None:
    with pytest.raises(ValueError, match="a batch of 17 rows where there is room for 16"):
        workers(Noise(), 1)(task(*range(17)))


SCRIPT = """
import time
from contextlib import closing
from smalti.data.workers import worker
from smalti.data.workers.workers import Workers
from tests.data.worker_jobs import Noise, task
worker._PRELOAD = ()  # torch is not needed here, and takes seconds

def main():
    with closing(Workers(Noise(trouble={0: "print", 1: TROUBLE}), 16, 2, say=print)) as workers:
        print(workers(task(0, 2, 3)).shown.tolist(), flush=True)
        workers.prefetch([task(1)])
        time.sleep(SLEEP)

GUARD
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, for sockets; a killed program leaves its own there."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def script(folder: Path, guard: str, trouble: str = "", sleep: int = 0) -> subprocess.Popen[str]:
    """Run a user's program."""
    path = folder / "script.py"
    text = SCRIPT.replace("GUARD", guard).replace("TROUBLE", repr(trouble)).replace("SLEEP", str(sleep))
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "TMPDIR": str(folder)}
    out = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(path)], env=environment, stdout=out, stderr=out, text=True)


@pytest.mark.processes
def test_standard_output_belongs_to_the_program(short: Path) -> None:
    out, err = script(short, "if __name__ == '__main__': main()").communicate(timeout=60)
    assert out == "[0, 2, 3]\n"
    assert sorted(err.splitlines()) == ["printed by a job", "written by a library"]


@pytest.mark.processes
def test_a_program_without_the_main_guard_is_told_so(short: Path) -> None:
    """J08."""
    out, err = script(short, "main()").communicate(timeout=60)
    assert out == ""
    last = err.splitlines()[-1]
    assert "data workers cannot start; they end with exit code 1; the reason is in the output above" in last
    assert last.endswith("a script that trains needs `if __name__ == '__main__':`; or use --num-workers 0")


@needs_proc
@pytest.mark.parametrize("trouble", ["", "hang"])
@pytest.mark.processes
def test_a_killed_program_leaves_no_process(short: Path, trouble: str) -> None:
    program = script(short, "if __name__ == '__main__': main()", trouble, 60)
    assert program.stdout is not None
    assert program.stdout.readline() == "[0, 2, 3]\n"
    time.sleep(0.1)  # let one open the image that it hangs at
    family = children(program.pid)
    assert len(family) >= 4  # two workers, the server they are forked from, the one that tracks resources
    assert [name for pid in [program.pid, *family] for name in shared_by_name(pid)] == []
    program.kill()
    program.wait()
    assert all_gone(family)
    program.communicate()


def resident(pid: int) -> int:
    """KiB of a process's own memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


@needs_proc
def test_memory_stays_flat(workers: Callable[..., Workers], said: list[str]) -> None:
    many = workers(Noise(trouble={3: "bad"}), 2, batch_size=4)
    tasks = [task(*range(4), seed=seed) for seed in range(22)]

    def work(rounds: int) -> None:
        for step in range(20 * rounds):
            many.prefetch(tasks[step % 20 : step % 20 + 3])
            # where it was not expected, the others are dropped
            many(task(7, seed=step) if step % 20 == 5 else tasks[step % 20])

    def use() -> list[int]:
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        return [files * 1024, *(resident(pid) for pid in [os.getpid(), *many.pids])]

    work(10)
    uses = [use()]
    for _ in range(3):
        work(25)
        uses.append(use())
    growths = [[now - then for now, then in zip(late, early, strict=True)] for early, late in itertools.pairwise(uses)]
    # an allocator may take another arena once; what is lost at every step is lost in every part
    assert all(min(growth) < 256 for growth in zip(*growths, strict=True)), growths
    assert said == []
