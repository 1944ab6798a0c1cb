"""The lock of a folder: who holds it is named, also in the moment before its name is written."""

import fcntl
import time
from pathlib import Path
from threading import Thread

import pytest

from smalti.core.errors import LockError
from smalti.core.folder_lock import LOCK, writer_lock


def test_a_holder_that_has_not_written_its_name_yet_is_named(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def write() -> None:
            time.sleep(0.1)
            print("12 on elsewhere", file=held, flush=True)

        writer = Thread(target=write)
        writer.start()
        with pytest.raises(LockError, match="by process 12 on elsewhere"), writer_lock(tmp_path):
            pass
        writer.join()


def test_a_holder_without_a_name_is_unknown(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockError, match="by process unknown"), writer_lock(tmp_path):
            pass
