"""The walk through a folder: what is taken, what is left out and why, in an order that is always the same."""

import inspect
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets import folder
from smalti.data.datasets.folder import BROKEN, INSIDE, IRREGULAR, OUTSIDE, FollowLinks, twins, walk
from smalti.data.datasets.labels import MAX_CLASSES, Labels, resolve
from smalti.data.datasets.names import NO_IMAGE, SYSTEM, LeftOut, PackedNamesBuilder
from smalti.data.datasets.open import open_source


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def taken(root: Path, follow: FollowLinks = "inside") -> list[str]:
    return [os.fsdecode(name) for name, reason in walk(root, follow) if not reason]


def refused(root: Path, follow: FollowLinks = "inside") -> set[tuple[str, str]]:
    return {(os.fsdecode(name), reason) for name, reason in walk(root, follow) if reason}


@given(st.lists(st.binary()))
def test_names_come_back_as_they_were_put_in(names: list[bytes]) -> None:
    builder = PackedNamesBuilder()
    for name in names:
        builder.add(name)
    built = builder.build()
    assert [built[position] for position in range(len(built))] == names


def peak_of(program: str, *arguments: str) -> int:
    """Bytes that `work()` of a program takes at most, in a process without the tests' type checks."""
    ending = "tracemalloc.start(); kept = work(); print(tracemalloc.get_traced_memory()[1])"
    program = f"import sys, tracemalloc\nsys.dont_write_bytecode = True\n{program}\n{ending}"
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


WALK = """
from pathlib import Path
from smalti.data.datasets import folder
from smalti.data.datasets.names import PackedNamesBuilder

class Entry:
    def __init__(self, name): self.name = name
    def is_symlink(self): return False
    def is_dir(self, follow_symlinks): return False
    def is_file(self, follow_symlinks): return True

class Scan:
    def __enter__(self):
        return (Entry(b"a_photograph_with_a_name_of_50_bytes_%010d.jpg" % (n * 7919 % 200_000)) for n in range(200_000))
    def __exit__(self, *_): pass

def work():
    names = PackedNamesBuilder()
    for name, _ in folder.walk(Path(".")):
        names.add(name)
    assert len(names) == 200_000
    return names.build()

folder.os.scandir = lambda _: Scan()
"""


def test_a_million_images_in_one_folder_cost_less_than_150_megabytes() -> None:
    """A flat folder is the worst case: all of its names are sorted at once. Measured on 200 000 stand-ins. H11."""
    assert peak_of(WALK) * 5 < 150e6


@pytest.mark.parametrize("backwards", [False, True])
def test_h13_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path, backwards: bool) -> None:
    names = ["B.png", "a-b.png", "a/1.png", "a/2.png", "a.png", "a/b/0.png", "b/0.png", "ä.png"]
    for name in sorted(names, reverse=backwards):
        touch(tmp_path / name)
    # Sorted level by level, as paths compare: the folder `a` before the files that begin with its name.
    assert taken(tmp_path) == [str(path.relative_to(tmp_path)) for path in sorted(tmp_path / name for name in names)]


def test_h03_loops_and_links_between_folders_count_every_image_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root / "a" / "1.png", root / "b" / "2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "other").symlink_to(root / "b")
    (root / "b" / "other").symlink_to(root / "a")
    (root / "self").symlink_to("self")
    (root / "parent").symlink_to(tmp_path)
    assert taken(root) == ["a/1.png", "b/2.png"]
    assert {reason for _, reason in refused(root)} == {INSIDE, BROKEN, OUTSIDE}
    # All links followed, `parent/root` is the folder itself: seen before, by device and inode.
    assert taken(root, follow="all") == ["a/1.png", "b/2.png"]
    assert ("parent/root", folder.SEEN) in refused(root, follow="all")


def test_h04_links_out_of_the_folder_are_followed_only_where_asked_for(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-outside"
    touch(root / "a.png", outside / "b.png", outside / "deep" / "c.png")
    (root / "file.png").symlink_to(outside / "b.png")
    (root / "folder").symlink_to(outside)
    (root / "again").symlink_to(outside)
    (root / "near.png").symlink_to("a.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "text.txt").symlink_to(outside / "b.png")
    assert taken(root) == ["a.png", "near.png"]
    assert refused(root) == {
        *((name, OUTSIDE) for name in ("file.png", "folder", "again")),
        ("gone.png", BROKEN),
        ("text.txt", NO_IMAGE),
    }
    assert taken(root, follow="all") == ["a.png", "again/b.png", "again/deep/c.png", "file.png", "near.png"]
    assert ("folder", folder.SEEN) in refused(root, follow="all")


def test_h09_what_systems_leave_behind_is_no_image(tmp_path: Path) -> None:
    names = ["._x.jpg", ".hidden/a.jpg", "Thumbs.db", "@eaDir/x.jpg", "__MACOSX/x.jpg", "lost+found/x.jpg"]
    touch(tmp_path / "x.jpg", *(tmp_path / name for name in names))
    assert taken(tmp_path) == ["x.jpg"]
    assert {reason for _, reason in refused(tmp_path)} == {SYSTEM}
    assert len(refused(tmp_path)) == len(names)


def test_h10_pipes_sockets_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket.jpg"))
        assert taken(tmp_path) == []
        names = {"pipe.jpg", "device.jpg", "socket.jpg"}
        assert refused(tmp_path) == refused(tmp_path, follow="all") == {(name, IRREGULAR) for name in names}
    assert stat.S_ISFIFO((tmp_path / "pipe.jpg").stat().st_mode)


def test_h11_a_deep_tree_is_no_recursion(tmp_path: Path) -> None:
    touch(tmp_path.joinpath(*["d"] * 200, "x.png"))
    depth = len(inspect.stack(0))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 100)
    try:
        assert [name.count("/") for name in taken(tmp_path)] == [200]
    finally:
        sys.setrecursionlimit(before)


def test_folders_called_like_images_are_folders(tmp_path: Path) -> None:
    touch(tmp_path / "folder.png" / "a.JPG", tmp_path / "plain.gif")
    assert taken(tmp_path) == ["folder.png/a.JPG", "plain.gif"]


def test_what_is_left_out_is_counted_with_its_first_name_in_order() -> None:
    left_out = LeftOut()
    for name in (b"z.txt", b"a.TXT", b"b", b"\xff.md"):
        left_out.add(NO_IMAGE, name)
    left_out.add(SYSTEM, b".x")
    assert left_out.as_dict() == {
        SYSTEM: {"count": 1, "first": ".x"},
        NO_IMAGE: {"count": 4, "first": "a.TXT", "suffixes": "2 .txt, 1 without extension, 1 .md"},
    }
    assert left_out.suffix_line() == "2 .txt, 1 without extension, 1 .md"
    assert str(left_out) == (f"1 {SYSTEM} (first .x), 4 {NO_IMAGE} (2 .txt, 1 without extension, 1 .md; first a.TXT)")
    other = LeftOut()
    other.merge(left_out, "shard: ")
    assert other.first[SYSTEM] == "shard: .x"
    for number in range(3000):
        left_out.add(NO_IMAGE, b"scan.%04d" % number)
    assert len(left_out.suffixes) <= 1001


def test_progress_is_said_on_the_way(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with folder.count_up(Log(), "scan photos") as tick:
        for count in range(1, 1025):
            tick(count)
    assert capsys.readouterr().err.splitlines() == ["scan photos: 512 so far", "scan photos: 1024 so far"]


@pytest.mark.parametrize(
    ("given_labels", "ids", "classes"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (["2", "0"], [2, 0], ("0", "1", "2")),
        (["10", "9", "x"], [0, 1, 2], ("10", "9", "x")),
        (["=1+1", "a"], [0, 1], ("=1+1", "a")),
    ],
)
def test_numbers_are_class_numbers_and_names_are_sorted(
    given_labels: list[str], ids: list[int], classes: tuple[str, ...]
) -> None:
    labels = Labels()
    for label in given_labels:
        labels.add(label)
    found, names, _ = labels.build()
    assert (found.tolist(), names) == (ids, classes)


def test_one_image_without_a_label_leaves_the_labels_of_the_others() -> None:
    ids, classes, notes = resolve(np.array([0, -1], np.int32), ("a",))
    assert (ids.tolist(), classes) == ([0, -1], ("a",))
    assert notes == ("1 of 2 images have no label, and are left out where labels are used",)


def test_too_many_classes_are_no_classes() -> None:
    labels = Labels()
    labels.table = {f"caption {number}": number for number in range(MAX_CLASSES)}
    with pytest.raises(ValueError, match="more than 100000 different labels; is this a column of labels"):
        labels.add("one more")


def test_h07_names_that_differ_in_case_or_unicode_form_only_are_found() -> None:
    assert twins(["Cat", "cat", "dog", "\u00e4", "a\u0308", "STRASSE", "stra\u00dfe"]) == [
        ("Cat", "cat"),
        ("\u00e4", "a\u0308"),
        ("STRASSE", "stra\u00dfe"),
    ]


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    touch(*(tmp_path / f"IMG_{number}.MOV" for number in range(5)), tmp_path / "LICENSE")
    touch(*(tmp_path / f"note{number}.txt" for number in range(30)), *(tmp_path / f"x.{end}" for end in "abcd"))
    Image.new("L", (5, 4)).save(tmp_path / "1.png")
    left_out = open_source(str(tmp_path), 1).left_out
    assert left_out.counts[NO_IMAGE] == 40
    assert left_out.suffix_line().startswith("30 .txt, 5 .mov, 1 ")
    assert left_out.suffix_line().endswith(", 2 others")
    assert str(left_out).startswith("40 no image's extension (30 .txt, 5 .mov, 1 ")
    assert str(left_out).endswith("; first IMG_0.MOV)")
    assert left_out.as_dict()[NO_IMAGE]["suffixes"] == left_out.suffix_line()


def test_links_of_a_snapshot_in_a_hub_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--own--photos"
    snapshot, blobs = repository / "snapshots" / "0a1b", repository / "blobs"
    blobs.mkdir(parents=True)
    for number, label in enumerate(("cat", "dog")):
        Image.new("L", (5, 4), number).save(blobs / f"{number:040x}", "png")
        (snapshot / label).mkdir(parents=True)
        (snapshot / label / "1.png").symlink_to(f"../../../blobs/{number:040x}")
    Image.new("L", (5, 4)).save(tmp_path / "hub" / "apart.png")
    (snapshot / "cat" / "2.png").symlink_to("../../../../apart.png")
    for root in (snapshot, repository):
        folder = open_source(str(root), 1)
        assert [(folder[place].key, folder[place].image.max()) for place in range(len(folder))] == [
            ("cat/1.png", 0),
            ("dog/1.png", 1),
        ]
        assert folder.left_out.counts[OUTSIDE] == 1
    blobs.rename(repository / "elsewhere")
    with pytest.raises(DataError):
        open_source(str(snapshot), 1)
