"""Signals are recorded in a block and nowhere else."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from smalti.distributed.signals import recorded_signals

pytestmark = pytest.mark.processes

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in ALL]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_one_that_asks_for_an_end_is_noted_and_nothing_else_happens(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    with recorded_signals() as requests:
        assert (requests.stop, requests.save) == (None, False)
        signal.raise_signal(number)
        assert (requests.stop, requests.save) == (number, True)
    assert handlers() == before
    assert capfd.readouterr().err == (
        f"\n{number.name}: the step is finished and saved first; once more ends at once\n"
    )
    error = requests.as_error("pretrain after step 3, saved", fix="go on")
    assert (str(error), error.exit_code) == (f"pretrain after step 3, saved; on {number.name}; go on", code)


def test_one_that_asks_for_a_checkpoint_ends_nothing() -> None:
    with recorded_signals() as requests:
        signal.raise_signal(signal.SIGUSR1)
    assert (requests.stop, requests.save) == (None, True)


def test_handlers_are_given_back_after_an_error() -> None:
    before = handlers()
    block = recorded_signals()
    block.__enter__()
    assert handlers() != before
    assert not block.__exit__(ValueError, ValueError("inside"), None)
    assert handlers() == before


@pytest.mark.parametrize("owner", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "taken"])
def test_a_signal_that_somebody_else_has_taken_stays_theirs(owner: signal.Handlers | Callable[..., None]) -> None:
    """As under nohup, or in a program with handlers of its own."""
    before = signal.signal(signal.SIGTERM, owner)
    try:
        with recorded_signals() as requests:
            assert signal.getsignal(signal.SIGTERM) is owner
            signal.raise_signal(signal.SIGTERM)
        assert requests.stop is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_noted_and_nothing_fails() -> None:
    before, found = handlers(), list[object]()

    def inside() -> None:
        with recorded_signals() as requests:
            found.extend([requests.stop, handlers()])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [None, before]


def test_the_second_one_ends_the_process_at_once() -> None:
    child = os.fork()
    if child == 0:
        try:
            with recorded_signals():
                os.close(2)
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
