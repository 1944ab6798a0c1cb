"""Writing shards: killed and continued, with other settings, beside another writer, on a full disk, with bad files."""

import errno
import fcntl
import hashlib
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.core.errors import DataError, LockError, OutputError, UsageError
from smalti.core.folder_lock import writer_lock
from smalti.core.log import Log
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.prepared import Prepared, Settings
from smalti.data.reading import even_sample
from smalti.data.write_shards import Written, write_shards
from tests.data.prepared import SHARD, fill, raw_settings
from tests.faults.kills import Nursery


class Interrupted(Folder):
    """A folder whose reader is stopped at one of its images."""

    stop_at = -1

    def read(self, index: int) -> bytes:
        if index == self.stop_at:
            raise KeyboardInterrupt
        return super().read(index)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures; three to a shard."""
    return fill(tmp_path / "photos", 12)


def put(photos: Path, folder: Path, reader: Folder | None = None, **fields: Any) -> Written:
    reader = Folder(photos, 3) if reader is None else reader
    return write_shards(reader, folder, raw_settings(reader, **fields), Log(), shard_bytes=SHARD)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def interrupt(photos: Path, folder: Path, position: int) -> None:
    source = Interrupted(photos, 3)
    source.stop_at = position
    with pytest.raises(KeyboardInterrupt):
        put(photos, folder, source)


@pytest.mark.parametrize("position", [0, 1, 4, 8, 11])
def test_what_was_interrupted_is_continued_to_the_same_bytes(photos: Path, tmp_path: Path, position: int) -> None:
    put(photos, tmp_path / "whole")
    folder = tmp_path / "shards"
    interrupt(photos, folder, position)
    assert "prepared.json" not in content(folder)
    kept = states(folder)
    about, written = put(photos, folder)
    assert content(folder) == content(tmp_path / "whole")
    assert kept.items() <= states(folder).items(), "whole shards are not written again"
    assert written == len(about.shards) - len(kept) // 2


KILLED = """
import os, signal, sys
from pathlib import Path
from smalti.core.log import Log
from smalti.data.write_shards import write_shards
from smalti.data.datasets.folder import Folder
from tests.data.prepared import SHARD, raw_settings

class Deadly(Folder):
    def read(self, index):
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)

def in_step(threads, function, items):
    return map(function, items)

from smalti.data import reading
reading.ordered_map = in_step  # so that the shards before are written when it dies
source = Deadly(Path(sys.argv[1]), 3)
write_shards(source, Path(sys.argv[2]), raw_settings(source), Log(), shard_bytes=SHARD)
"""


@pytest.mark.processes
def test_what_was_killed_is_continued(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], one: Nursery
) -> None:
    """Nothing had a chance to tidy up: an unfinished shard and a lock lie there."""
    folder = tmp_path / "shards"
    assert one.killed_itself(KILLED, str(photos), str(folder)), one.told()
    assert {".lock", ".shard-00002.tar", "shard-00001.index"} <= set(content(folder))
    (folder / ".shard-00001.index.0123456789abcdef0123456789abcdef").touch()
    kept = {name: state for name, state in states(folder).items() if name.startswith("shard")}
    put(photos, folder)
    put(photos, tmp_path / "whole")
    assert content(folder) == content(tmp_path / "whole")
    assert kept.items() <= states(folder).items()
    assert f"{folder}: 6 images are there already, shards 0 to 1" in capsys.readouterr().err


def test_a_finished_data_set_is_verified_and_not_touched(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    first = put(photos, folder)
    before = states(folder)
    again = put(photos, folder)
    assert (first.written, again.written) == (4, 0)
    assert first.about == again.about
    assert states(folder) == before


def test_the_size_of_shards_and_the_share_of_bad_files_may_change_in_between(photos: Path, tmp_path: Path) -> None:
    interrupt(photos, tmp_path / "shards", 8)
    source = Folder(photos, 3)
    write_shards(source, tmp_path / "shards", raw_settings(source), Log(), 0.5, 10**9)
    made = Prepared(tmp_path / "shards", 3)
    assert [made.key(index) for index in range(12)] == [source.key(index) for index in range(12)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["tar", "index"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_shard_and_those_after_it_are_written_again(
    photos: Path, tmp_path: Path, damage: Callable[[Path], None], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    put(photos, folder)
    whole, before = content(folder), states(folder)
    damage(folder / f"shard-00001.{suffix}")
    capsys.readouterr()
    assert put(photos, folder).written == 3
    assert content(folder) == whole
    first = {name for name, state in states(folder).items() if before[name] == state}
    assert first == {"shard-00000.tar", "shard-00000.index"}
    if (damage, suffix) != (Path.unlink, "index"):
        said = f"shard-00001.{suffix} is damaged; "
        assert any(said in line and "written again, with all" in line for line in capsys.readouterr().err.splitlines())


def test_a_shard_that_cannot_be_read_just_now_is_not_thrown_away(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    put(photos, folder)
    before = states(folder)

    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", broken)
    with pytest.raises(DataError, match=r"cannot read .*shard-00000\.tar; Input/output error"):
        put(photos, folder)
    assert states(folder) == before


def test_a_lost_description_is_written_without_reading_images(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    put(photos, folder)
    whole = content(folder)
    for damage in (Path.unlink, lambda path: path.write_bytes(whole["prepared.json"][:-9]), flip):
        damage(folder / "prepared.json")
        source = Interrupted(photos, 3)
        source.read = None  # type: ignore[assignment,method-assign]
        assert put(photos, folder, source).written == 0
        assert content(folder) == whole


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"side": 8}, "shards was prepared with side 16, now 8; use the same side, or another --out"),
        ({"data": "/b"}, "shards was prepared with data /data, now /b; use the same data, or another --out"),
        ({"source": "list"}, "shards was prepared with source folder, now list; use the same source"),
        ({"encoding": "jpeg"}, "shards was prepared with encoding raw, now jpeg; use the same encoding"),
        ({"quality": 90}, "shards was prepared with quality None, now 90; use the same quality"),
        ({"channels": 1}, "shards was prepared with channels 3, now 1; use the same channels"),
        ({"limit": 5}, "shards was prepared with limit None, now 5; use the same limit"),
        (
            {"length": 13},
            "shards was prepared from other images; files or labels in /data .*12 images then, 13 now; use a",
        ),
        (
            {"fingerprint": "x"},
            "shards was prepared from other images; files or labels in /data have changed: 12",
        ),
    ],
)
def test_other_settings_are_refused_by_name(
    photos: Path, tmp_path: Path, fields: dict[str, Any], message: str, finished: bool
) -> None:
    folder = tmp_path / "shards"
    if finished:
        put(photos, folder)
    else:
        interrupt(photos, folder, 8)
    before = states(folder)
    with pytest.raises(UsageError, match=message):
        put(photos, folder, **fields)
    assert states(folder) == before


def test_a_changed_file_is_another_source(photos: Path, tmp_path: Path) -> None:
    interrupt(photos, tmp_path / "shards", 8)
    with open(photos / "000.png", "ab") as file:
        file.write(b"more")
    with pytest.raises(UsageError, match="was prepared from other images; files or labels in /data have changed: 12"):
        put(photos, tmp_path / "shards")


@pytest.mark.parametrize("name", ["shard-00001.index", "prepared.json"])
def test_a_later_format_is_not_overwritten(photos: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "shards"
    put(photos, folder)
    changed = re.sub(rb'"(smalti_prepared|smalti_shard)": 1', rb'"\1": 2', (folder / name).read_bytes())
    (folder / name).write_bytes(changed)
    before = states(folder)
    with pytest.raises(DataError, match=rf"cannot read .*{name}; its format is 2"):
        put(photos, folder)
    assert states(folder) == before


def test_a_later_format_behind_a_damaged_shard_is_not_overwritten(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    put(photos, folder)
    index = folder / "shard-00001.index"
    index.write_bytes(index.read_bytes().replace(b'"smalti_shard": 1', b'"smalti_shard": 2'))
    damaged = bytearray((folder / "shard-00000.tar").read_bytes())
    damaged[600] ^= 1
    (folder / "shard-00000.tar").write_bytes(damaged)
    before = states(folder)
    with pytest.raises(DataError, match=r"cannot read .*shard-00001\.index; its format is 2"):
        put(photos, folder)
    assert states(folder) == before


def test_what_cannot_be_removed_is_an_output_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shards" / "shard-00007.tar").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write .*shards; .*; what is whole stays"):
        put(photos, tmp_path / "shards")


def test_nothing_is_written_among_other_things(photos: Path, tmp_path: Path) -> None:
    before = states(photos)
    with pytest.raises(
        UsageError, match=r"photos is not empty; 000\.png is not what smalti prepare writes; choose another --out"
    ):
        put(photos, photos)
    assert states(photos) == before
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").touch()
    put(photos, tmp_path / "hidden")
    assert ".DS_Store" in content(tmp_path / "hidden")


def test_one_writer_at_a_time(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    message = rf"shards is being written; by process {os.getpid()} on .*; wait for it, or use another --out"
    with writer_lock(folder), pytest.raises(LockError, match=message):
        put(photos, folder)
    put(photos, folder)
    assert ".lock" not in content(folder)


def test_the_lock_of_a_dead_process_is_taken_over(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for left in (b"", b"999999 on elsewhere\n", b"\xff" * 1000):
        (folder / ".lock").write_bytes(left)
        put(photos, folder)
        assert ".lock" not in content(folder)


def test_a_lock_that_was_removed_after_it_was_opened_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before us removes its file between our opening and our locking it."""
    really, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        really(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with writer_lock(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / ".lock").exists()


def test_where_there_are_no_locks_it_works_without(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert put(photos, tmp_path / "shards").written == 4


def test_a_lock_is_never_written_through_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "shards" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"cannot lock .*shards; "):
        put(photos, tmp_path / "shards")
    assert (tmp_path / "precious").read_text() == "precious"


def test_what_cannot_be_a_folder_is_an_output_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "shards"):
        with pytest.raises(OutputError, match=r"cannot write into .*file"):
            put(photos, out)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_output_error_and_what_is_whole_is_used_later(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    interrupt(photos, folder, 8)
    kept = states(folder)
    message = r"cannot write .*shard-00002\.tar; File too large; what is whole stays; run the same command again when "
    with files_of_at_most(2000), pytest.raises(OutputError, match=message):
        put(photos, folder)
    assert states(folder) == kept
    put(photos, folder)
    put(photos, tmp_path / "whole")
    assert content(folder) == content(tmp_path / "whole")


def bad_lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "bad_files.jsonl").read_text().splitlines()]


def test_bad_files_are_left_out_and_listed_over_all_shards_and_runs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [photos / f"{number:03d}.png" for number in (1, 5, 11)]
    for path in bad:
        path.write_text("no image")
    folder, source = tmp_path / "shards", Interrupted(photos, 3)
    source.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, folder, raw_settings(source), Log(), 0.3, SHARD)
    source.stop_at = -1
    about, _ = write_shards(source, folder, raw_settings(source), Log(), 0.3, SHARD)
    assert (about.images, about.unreadable) == (9, 3)
    reason = "not an image in a format smalti knows"
    assert bad_lines(folder) == [{"path": str(path), "reason": reason} for path in bad]
    assert f"left out: 3 of 12 images cannot be read, first {bad[0]} ({reason})" in capsys.readouterr().err
    made = Prepared(folder, 3)
    assert [made.key(index) for index in range(9)] == [f"{n:03d}.png" for n in range(12) if n not in (1, 5, 11)]
    assert write_shards(source, folder, raw_settings(source), Log(), 0.3, SHARD).written == 0


def test_too_many_bad_files_stop_it_and_a_greater_share_goes_on(photos: Path, tmp_path: Path) -> None:
    for number in (8, 9, 10):
        (photos / f"{number:03d}.png").write_bytes(b"")
    message = (
        r"2 of 12 images cannot be read, first .*008\.png; the file is empty; "
        r"remove them .smalti check names them all., or raise --max-bad-fraction .now "
    )
    folder = tmp_path / "shards"
    with pytest.raises(DataError, match=message):
        put(photos, folder)
    assert [Path(line["path"]).name for line in bad_lines(folder)] == ["008.png", "009.png"]
    assert "shard-00001.index" in content(folder)
    kept = {name: state for name, state in states(folder).items() if name.startswith("shard")}
    source = Folder(photos, 3)
    about, written = write_shards(source, folder, raw_settings(source), Log(), 0.25, SHARD)
    assert (about.images, about.unreadable, written) == (9, 3, len(about.shards) - 2)
    assert kept.items() <= states(folder).items()
    assert len(bad_lines(folder)) == 3


def test_one_bad_file_is_always_allowed_and_only_bad_files_never(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 2)
    (photos / "000.png").write_text("x")
    assert put(photos, tmp_path / "shards").about.unreadable == 1
    (photos / "001.png").write_text("x")
    source = Folder(photos, 3)
    with pytest.raises(DataError, match=r"2 of 2 images cannot be read, first .*000\.png; not an image"):
        write_shards(source, tmp_path / "none", raw_settings(source), Log(), 1.0)


def test_images_that_became_unreadable_may_be_all_that_is_left(photos: Path, tmp_path: Path) -> None:
    """The last shard then has no images."""
    folder, source = tmp_path / "shards", Interrupted(photos, 3)
    described = raw_settings(source)
    source.stop_at = 10
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, folder, described, Log(), shard_bytes=SHARD // 3)
    for number in range(9, 12):
        (photos / f"{number:03d}.png").unlink()
    source.stop_at = -1
    about, _ = write_shards(source, folder, described, Log(), 0.5, SHARD // 3)
    assert [shard.images for shard in about.shards][-1] == 0
    made = Prepared(folder, 3)
    assert len(made) == about.images == 9
    made.verify(Log())
    assert made.key(8) == "008.png"


def test_a_limit_takes_an_even_sample(photos: Path, tmp_path: Path) -> None:
    put(photos, tmp_path / "shards", limit=4)
    made = Prepared(tmp_path / "shards", 3)
    assert [made.key(index) for index in range(4)] == [f"{place:03}.png" for place in even_sample(12, 4)]


def test_shards_are_a_source_of_others(photos: Path, tmp_path: Path) -> None:
    put(photos, tmp_path / "shards")
    source = Prepared(tmp_path / "shards", 3)
    described: Settings = raw_settings(source, data="/shards", side=8)
    write_shards(source, tmp_path / "small", described, Log())
    made = Prepared(tmp_path / "small", 3)
    assert made[3].key == "003.png"
    assert min(made[3].image.shape[:2]) == 8
    assert np.array_equal(made[3].image, source.shrunk(3, 8).image)
