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
from smalti.core.ranks import rank_name

_INTERVAL = 0.5
"""Seconds between two heartbeats."""
_BEAT_TIMEOUT = 3.0
"""Seconds within which a running process sends a heartbeat, however busy its machine."""
_GRACE = 5.0
"""Seconds for the main thread to fail by itself after another process is gone, before the heartbeat ends it."""
_LEFT = "left"


class Heartbeat:
    """Sends heartbeats to `store` until it is stopped.

    Args:
        store: a client that nothing else uses, as a client serves one operation at a time.
        rank, world: of this process.
        hang_timeout: seconds without a heartbeat after which another process counts as hung.
    """

    def __init__(self, store: Store, rank: int, world: int, hang_timeout: float) -> None:
        self.store, self.rank, self.hang_timeout = store, rank, hang_timeout
        self.others = [other for other in range(world) if other != rank]
        self._lock, self._stopped, self._disarmed = threading.Lock(), threading.Event(), threading.Event()
        self._beats, self._last_messages = 0, dict.fromkeys(self.others, "")
        self._send_beat()
        store.set(f"word/{rank}", "")
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread, after every process has sent its first heartbeat."""
        self._thread.start()

    def disarm(self) -> None:
        """Never end this process from now on, since it is about to end by itself."""
        self._disarmed.set()

    def stop(self) -> None:
        self.disarm()
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_BEAT_TIMEOUT)

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
            messages, beats = self._read_messages(), self._read_beats() or {}
            if all(messages[other] or _is_gone(beat) for other, beat in beats.items()):
                return True
            time.sleep(_INTERVAL / 5)
        return False

    def diagnosis(self) -> str:
        """Which process is lost and how, after waiting a few seconds; empty where all are alive."""
        until, first = time.monotonic() + _BEAT_TIMEOUT, self._read_beats()
        while True:
            now = self._read_beats()
            if now is None:
                return self._without_store()
            messages = self._read_messages()
            if found := self._lost(now, messages) or _ended(messages):
                return found
            if time.monotonic() > until:
                silent = [other for other in self.others if first is not None and first[other] == now[other]]
                return "; ".join(_silent(other) for other in silent)
            time.sleep(_INTERVAL / 5)

    def _lost(self, beats: dict[int, str], messages: dict[int, str]) -> str:
        """The process that has reported a failure, or one of this machine that has ended without a report."""
        failed = [
            f"{rank_name(other)} has failed: {message}"
            for other, message in messages.items()
            if message not in ("", _LEFT)
        ]
        silent = {other: beat for other, beat in beats.items() if not messages[other]}
        gone = [f"{rank_name(other)} is gone ({_process(beat)})" for other, beat in silent.items() if _is_gone(beat)]
        return "; ".join(failed or gone)

    def _watch(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        lost_since, beaten = None, time.monotonic()
        while not self._stopped.wait(_INTERVAL):
            now = time.monotonic()
            if now - beaten > _BEAT_TIMEOUT:  # this process itself was suspended
                seen.clear()
            beaten = now
            beats = self._read_beats() if self._send_beat() else None
            lost = self._lost_or_silent(beats, seen) if beats is not None else self._without_store()
            lost_since = None if not lost else lost_since or now
            if lost_since is not None and now - lost_since > _GRACE and not self._disarmed.is_set():
                _end(f"{lost}; seen by {rank_name(self.rank)}")

    def _without_store(self) -> str:
        """The diagnosis where the store is gone: what was known before, or that the process that hosts it is gone."""
        gone = f"{rank_name(0)} or the torchrun that started it is gone, and with it the place where all meet"
        return self._lost({}, self._last_messages) or gone

    def _lost_or_silent(self, beats: dict[int, str], seen: dict[int, tuple[str, float]]) -> str:
        messages, now = self._read_messages(), time.monotonic()
        for other, beat in beats.items():
            if other not in seen or seen[other][0] != beat:
                seen[other] = beat, now
        silent = [
            other for other in self.others if not messages[other] and now - seen[other][1] > self.hang_timeout + _GRACE
        ]
        return self._lost(beats, messages) or "; ".join(_silent(other) for other in silent)

    def _send_beat(self) -> bool:
        self._beats += 1
        with suppress(RuntimeError), self._lock:
            self.store.set(f"beat/{self.rank}", f"{self._beats} {os.getpid()} {_machine()}")
            return True
        return False

    def _read_beats(self) -> dict[int, str] | None:
        with suppress(RuntimeError), self._lock:
            found = self.store.multi_get([f"beat/{other}" for other in self.others])
            return {other: beat.decode() for other, beat in zip(self.others, found, strict=True)}
        return None

    def _read_messages(self) -> dict[int, str]:
        with suppress(RuntimeError), self._lock:
            found = self.store.multi_get([f"word/{other}" for other in self.others])
            self._last_messages = {other: message.decode() for other, message in zip(self.others, found, strict=True)}
        return self._last_messages


def _silent(other: int) -> str:
    return f"{rank_name(other)} gives no sign of life: it is stopped, or its machine cannot be reached"


def _ended(messages: dict[int, str]) -> str:
    return "; ".join(f"{rank_name(other)} has ended" for other, message in messages.items() if message == _LEFT)


def _machine() -> str:
    """The name of this machine, in whose process table a process number is to be looked up."""
    with suppress(OSError):
        return f"{os.readlink('/proc/self/ns/pid')} {platform.node()}"
    return f"- {platform.node()}"


def _process(beat: str) -> str:
    _, process, _, node = beat.split(" ", 3)
    return f"process {process} on {node}"


def _is_gone(beat: str) -> bool:
    """Whether a process of this machine has ended; a zombie counts as ended."""
    _, process, machine = beat.split(" ", 2)
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
