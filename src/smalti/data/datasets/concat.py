"""Several datasets as one: the splits of a folder, where all of their images are wanted."""

from collections.abc import Mapping
from itertools import accumulate

from smalti.core.errors import DataError
from smalti.core.files import sha256
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset, place_in
from smalti.data.datasets.labels import NONE
from smalti.data.datasets.names import LeftOut


class ConcatDataset(ImageDataset):
    """Several datasets, one after the other; classes of the same name are one, and keys begin with the name of a part.

    There are no labels where a part has none.

    Raises:
        DataError: some parts were prepared with another value window than the others.
    """

    def __init__(self, parts: Mapping[str, ImageDataset]) -> None:
        self.parts, sources = list(parts.items()), list(parts.values())
        self.kind, self.channels = sources[0].kind, sources[0].channels
        self.in_order = any(source.in_order for source in sources)
        self.ends = list(accumulate(map(len, sources)))
        self.notes = tuple(f"{name}: {note}" for name, source in self.parts for note in source.notes)
        self.left_out = LeftOut()
        for name, source in self.parts:
            self.left_out.merge(source.left_out, f"{name}/")
        if len({source.made_window for source in sources}) > 1:
            cause = "; ".join(f"{name}: {source.made_window or 'none'}" for name, source in self.parts)
            fix = "prepare all of them with the same --window, or give one of them"
            raise DataError("splits prepared with different value windows", cause=cause, fix=fix)
        self.made_window = sources[0].made_window
        self.no_labels = next((source.no_labels for source in sources if not source.classes), "")
        if all(source.classes for source in sources):
            self.classes = tuple(sorted({name for source in sources for name in source.classes}))
        number = {name: place for place, name in enumerate(self.classes)}
        self.numbers = [[number.get(name, NONE) for name in source.classes] for source in sources]

    def _at(self, index: int) -> tuple[int, int]:
        """The part that an image lies in, and its index there."""
        return place_in(self.ends, range(len(self))[index])

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, index: int) -> bytes:
        part, place = self._at(index)
        return self.parts[part][1].read(place)

    def label(self, index: int) -> int:
        part, place = self._at(index)
        label = self.parts[part][1].label(place)
        return self.numbers[part][label] if self.classes and label >= 0 else NONE

    def key(self, index: int) -> str:
        part, place = self._at(index)
        return f"{self.parts[part][0]}/{self.parts[part][1].key(place)}"

    def name(self, index: int) -> str:
        part, place = self._at(index)
        return self.parts[part][1].name(place)

    def length(self, index: int) -> int:
        part, place = self._at(index)
        return self.parts[part][1].length(place)

    def column(self, name: str) -> list[str | None]:
        return [cell for _, source in self.parts for cell in source.column(name)]

    def fingerprint(self) -> str:
        parts = repr([(name, source.fingerprint()) for name, source in self.parts])
        return sha256(parts.encode(errors="surrogateescape"))

    def verify(self, log: Log) -> None:
        for _, source in self.parts:
            source.verify(log)
