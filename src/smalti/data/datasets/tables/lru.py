"""What was made last, kept up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, made when first asked for; those unused for longest are dropped.

    Threads that ask for the same value at the same time wait for one of them to make it.
    """

    def __init__(self, make: Callable[[K], V], size: Callable[[V], int], max_bytes: int) -> None:
        self.make, self.size, self.max_bytes = make, size, max_bytes
        self._made: OrderedDict[K, Future[V]] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def __call__(self, key: K) -> V:
        with self._lock:
            future = self._made.get(key)
            if is_rank0 := future is None:
                future = self._made[key] = Future()
            else:
                self._made.move_to_end(key)
        assert future is not None
        if is_rank0:
            self._fill(key, future)
        return future.result()

    def _fill(self, key: K, future: "Future[V]") -> None:
        try:
            future.set_result(self.make(key))
        except BaseException as error:
            with self._lock:
                del self._made[key]
            future.set_exception(error)
            return
        with self._lock:
            self._bytes += self.size(future.result())
            for old in [old for old, other in self._made.items() if other.done() and old != key]:
                if self._bytes <= self.max_bytes:
                    return
                self._bytes -= self.size(self._made.pop(old).result())
