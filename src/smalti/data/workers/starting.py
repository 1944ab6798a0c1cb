"""How worker processes are begun."""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext

_PRELOAD = ("smalti.data.workers.dataset", "smalti.data.render")


def context() -> ForkServerContext | SpawnContext:
    """Linux forks from a server that has torch and no threads; elsewhere, forking is not safe."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    one = multiprocessing.get_context("forkserver")
    one.set_forkserver_preload(list(_PRELOAD))
    with interrupts_held():
        forkserver.ensure_running()
    return one


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """A process that is started meanwhile never sees Ctrl-C or SIGUSR1."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
