"""A run folder that somebody removes, or takes over, while the run goes on."""

from contextlib import ExitStack
from types import TracebackType

from smalti.core.errors import LockError, OutputError
from smalti.core.files import write_bytes
from smalti.core.folder_lock import LOCK, holder, only_writer, own_name
from smalti.core.log import Log
from smalti.runs.folder import RunFolder

_NEEDED = ("config.json", "data.json")
"""What makes a folder a run that can go on."""


class Kept:
    """What a run folder was when training began, in memory; of the process that has its lock."""

    def __init__(self, folder: RunFolder, log: Log) -> None:
        self.path, self.log = folder.path, log
        self.ours = holder(folder.path) == own_name()
        self.files = {name: (folder.path / name).read_bytes() for name in _NEEDED if (folder.path / name).exists()}
        self.again = False
        self.locks = ExitStack()

    def see_to_it(self) -> None:
        """Before something is written: make the folder again where it is gone, once.

        Raises:
            OutputError: it is gone for the second time.
            LockError: another run has taken its place.
        """
        if not self.ours:
            return
        if (self.path / LOCK).exists() and (other := holder(self.path)) != own_name():
            raise LockError(
                f"{self.path} has been taken over", cause=f"by process {other}", fix="two runs need two folders"
            )
        if all((self.path / name).exists() for name in self.files):
            return
        if self.again:
            raise OutputError(f"{self.path} was removed again", cause="a run needs its folder")
        self.again = True
        for name, content in self.files.items():
            write_bytes(self.path / name, content)
        self.locks.enter_context(only_writer(self.path))
        self.log.say(f"{self.path} was removed while the run goes on; it is made again, without what was in it")

    def __enter__(self) -> "Kept":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.locks:
            if error is None:
                self.see_to_it()
