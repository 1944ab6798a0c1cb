"""Heartbeats between the processes of a run, so that the others can say which process is lost.

On every rank a thread increments a counter in the shared store and reads the counters of the others. A collective may
wait for ever for a process that is gone or hangs; the thread then ends this process with a message that names it.
"""

import faulthandler
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from torch._C._distributed_c10d import Store

from smalti.core.errors import DistributedError
from smalti.core.ranks import named

_BEAT = 0.5
"""Seconds between two heartbeats."""
_PATIENCE = 3.0
"""Seconds within which a running process sends a heartbeat, however busy its machine."""
_GRACE = 5.0
"""Seconds for the main thread to fail by itself after another process is gone, before the heartbeat ends it."""
_LEFT = "left"


class Heartbeat:
    """Sends heartbeats to `store` until it is stopped.

    Args:
        store: a client that nothing else uses, as a client serves one operation at a time.
        rank, world: of this process.
        silent_after: seconds without a heartbeat after which another process counts as hung.
    """

    def __init__(self, store: Store, rank: int, world: int, silent_after: float) -> None:
        self.store, self.rank, self.silent_after = store, rank, silent_after
        self.others = [other for other in range(world) if other != rank]
        self._lock, self._stopped, self._disarmed = threading.Lock(), threading.Event(), threading.Event()
        self._beats, self._last_words = 0, dict.fromkeys(self.others, "")
        self._beat()
        store.set(f"word/{rank}", "")
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread, after every process has sent its first heartbeat."""
        self._thread.start()

    def disarm(self) -> None:
        """Never end this process from now on, since it is about to end by itself."""
        self._disarmed.set()

    def stop(self) -> None:
        """Stop the thread."""
        self.disarm()
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)

    def leave(self, why: str = _LEFT) -> None:
        """Stop, and tell the others that this process has finished, or what has failed. Only the first call counts.

        Nothing of this process uses the store after that: its server may close as soon as all have left, and libtorch
        prints a warning on every later use.
        """
        self.stop()
        with suppress(RuntimeError), self._lock:
            if not self.store.get(f"word/{self.rank}"):
                self.store.set(f"word/{self.rank}", why)

    def all_have_left(self, seconds: float) -> bool:
        """Wait until every other process has left or is gone; False where that takes longer than `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            words, signs = self._words(), self._signs() or {}
            if all(words[other] or _is_gone(sign) for other, sign in signs.items()):
                return True
            time.sleep(_BEAT / 5)
        return False

    def diagnosis(self) -> str:
        """Which process is lost and how, after waiting a few seconds; empty where all are alive."""
        until, first = time.monotonic() + _PATIENCE, self._signs()
        while True:
            now = self._signs()
            if now is None:
                return self._without_store()
            words = self._words()
            if found := self._lost(now, words) or _ended(words):
                return found
            if time.monotonic() > until:
                silent = [other for other in self.others if first is not None and first[other] == now[other]]
                return "; ".join(_silent(other) for other in silent)
            time.sleep(_BEAT / 5)

    def _lost(self, signs: dict[int, str], words: dict[int, str]) -> str:
        """The process that has reported a failure, or one of this machine that has ended without a report."""
        failed = [f"{named(other)} has failed: {word}" for other, word in words.items() if word not in ("", _LEFT)]
        silent = {other: sign for other, sign in signs.items() if not words[other]}
        gone = [f"{named(other)} is gone ({_process(sign)})" for other, sign in silent.items() if _is_gone(sign)]
        return "; ".join(failed or gone)

    def _watch(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        lost_since, beaten = None, time.monotonic()
        while not self._stopped.wait(_BEAT):
            now = time.monotonic()
            if now - beaten > _PATIENCE:  # this process itself was suspended
                seen.clear()
            beaten = now
            signs = self._signs() if self._beat() else None
            lost = self._lost_or_silent(signs, seen) if signs is not None else self._without_store()
            lost_since = None if not lost else lost_since or now
            if lost_since is not None and now - lost_since > _GRACE and not self._disarmed.is_set():
                _end(f"{lost}; seen by {named(self.rank)}")

    def _without_store(self) -> str:
        """The diagnosis where the store is gone: what was known before, or that the process that hosts it is gone."""
        gone = f"{named(0)} or the torchrun that started it is gone, and with it the place where all meet"
        return self._lost({}, self._last_words) or gone

    def _lost_or_silent(self, signs: dict[int, str], seen: dict[int, tuple[str, float]]) -> str:
        words, now = self._words(), time.monotonic()
        for other, sign in signs.items():
            if other not in seen or seen[other][0] != sign:
                seen[other] = sign, now
        silent = [
            other for other in self.others if not words[other] and now - seen[other][1] > self.silent_after + _GRACE
        ]
        return self._lost(signs, words) or "; ".join(_silent(other) for other in silent)

    def _beat(self) -> bool:
        self._beats += 1
        with suppress(RuntimeError), self._lock:
            self.store.set(f"beat/{self.rank}", f"{self._beats} {os.getpid()} {_machine()}")
            return True
        return False

    def _signs(self) -> dict[int, str] | None:
        with suppress(RuntimeError), self._lock:
            found = self.store.multi_get([f"beat/{other}" for other in self.others])
            return {other: sign.decode() for other, sign in zip(self.others, found, strict=True)}
        return None

    def _words(self) -> dict[int, str]:
        with suppress(RuntimeError), self._lock:
            found = self.store.multi_get([f"word/{other}" for other in self.others])
            self._last_words = {other: word.decode() for other, word in zip(self.others, found, strict=True)}
        return self._last_words


def _silent(other: int) -> str:
    return f"{named(other)} gives no sign of life: it is stopped, or its machine cannot be reached"


def _ended(words: dict[int, str]) -> str:
    return "; ".join(f"{named(other)} has ended" for other, word in words.items() if word == _LEFT)


def _machine() -> str:
    """The name of this machine, in whose process table a process number is to be looked up."""
    with suppress(OSError):
        return f"{os.readlink('/proc/self/ns/pid')} {platform.node()}"
    return f"- {platform.node()}"


def _process(sign: str) -> str:
    _, process, _, node = sign.split(" ", 3)
    return f"process {process} on {node}"


def _is_gone(sign: str) -> bool:
    """Whether a process of this machine has ended; a zombie counts as ended."""
    _, process, machine = sign.split(" ", 2)
    if machine != _machine():
        return False
    try:
        os.kill(int(process), 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:  # of another user, or a system without /proc
        return False


def _end(message: str) -> None:
    """End this process, whose main thread is blocked, after printing where it is blocked."""
    sys.stderr.write(f"error: {message}; this is where it was waited for:\n")
    sys.stderr.flush()
    with suppress(Exception):
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(DistributedError.exit_code)
