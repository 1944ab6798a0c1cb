"""Tar shards: patterns, what of an archive is taken, the index and its cache, damaged and hostile archives."""

import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.datasets import tar as shards
from smalti.data.datasets import tar_index
from smalti.data.datasets.data_files import LocalFiles, cache_folder
from smalti.data.datasets.names import NO_IMAGE, SYSTEM
from smalti.data.datasets.open import open_source
from smalti.data.datasets.tar import Shards, expand
from smalti.data.datasets.tar_index import BAD_LABEL, DAMAGED, DUPLICATE, LEADS_OUT, SECOND, TOO_LARGE
from smalti.data.datasets.tar_members import CUT_OFF, IRREGULAR, SPARSE, DamagedTarError, Member, members
from tests.contracts import check_dataset
from tests.data.test_listing import peak_of


def shards_at(paths: Sequence[Path], channels: int, log: Log | None = None) -> Shards:
    return Shards(LocalFiles(paths), channels, log)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (5, 4), value).save(file, "png")
    return file.getvalue()


def info(name: str, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def tar_of(*entries: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for about, data in entries:
            entry = info(about) if isinstance(about, str) else about
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def put(path: Path, *entries: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(*entries, format=format))
    return path


def keys(source: Shards) -> list[str]:
    return [source.key(position) for position in range(len(source))]


def counts(source: Shards) -> dict[str, int]:
    return dict(source.left_out.counts)


def test_shards_of_a_pattern_are_one_source_with_labels(tmp_path: Path) -> None:
    for shard in range(3):
        samples = [(f"{shard}{n}", 10 * shard + n) for n in range(4)]
        pairs = [((f"{key}.png", png(value)), (f"{key}.cls", str(value % 3).encode())) for key, value in samples]
        put(tmp_path / f"s-{shard:03d}.tar", *[entry for pair in pairs for entry in pair], ("x.json", b"{}"))
    source = open_source(f"{tmp_path}/s-{{000..002}}.tar", 1)
    assert isinstance(source, Shards)
    check_dataset(source)
    assert (len(source), source.classes) == (12, ("0", "1", "2"))
    assert [int(source[i].image[0, 0, 0]) for i in range(12)] == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert [source[i].label for i in range(12)] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert (source[5].key, source.name(5)) == ("s-001.tar/11.png", f"{tmp_path}/s-001.tar/11.png")
    assert source.shrunk(0, 2).image.shape == (2, 2, 1)
    assert source.length(5) == len(source.read(5))
    assert counts(source) == {NO_IMAGE: 3}


def test_shards_can_be_sent_to_another_process(tmp_path: Path) -> None:
    path = put(tmp_path / "0.tar", ("a.png", png(7)))
    for _ in range(2):  # with the index just made, and from its cache
        source = pickle.loads(pickle.dumps(shards_at([path], 1)))
        assert (source[0].image[0, 0, 0], source.key(0)) == (7, "0.tar/a.png")


def test_names_below_the_working_folder_are_as_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "x" / "0.tar", ("a.png", png()))
    monkeypatch.chdir(tmp_path / "x")
    for name in ("0.tar", "./0.tar", "../x/0.tar", f"{tmp_path}/x/../x/0.tar"):
        assert shards_at([Path(name)], 1).key(0) == "0.tar/a.png"


def test_labels_are_numbered_over_all_shards(tmp_path: Path) -> None:
    put(tmp_path / "0.tar", ("a.png", png()), ("a.cls", b"dog\n"), ("b.cls", b"ant"), ("b.png", png()))
    put(tmp_path / "1.tar", ("c.png", png()), ("c.cls", b"cat"), ("d.cls", b"dog"), ("d.png", png()))
    source = shards_at([tmp_path / "0.tar", tmp_path / "1.tar"], 1)
    assert source.classes == ("ant", "cat", "dog")
    assert [source[i].label for i in range(4)] == [2, 0, 1, 2]


def test_labels_of_some_images_only_are_used_and_the_others_counted(tmp_path: Path) -> None:
    bad = [("b.png", png()), ("b.cls", b"-4"), ("c.png", png()), ("c.cls", b"x" * 2000)]
    source = shards_at([put(tmp_path / "0.tar", ("a.png", png()), ("a.cls", b"1"), *bad)], 1)
    assert (source.classes, [source[i].label for i in range(3)]) == (("-4", "1"), [1, 0, -1])
    assert source.notes == ("1 of 3 images have no label, and are left out where labels are used",)
    assert counts(source) == {BAD_LABEL: 1}


def test_labels_lie_in_json_too(tmp_path: Path) -> None:
    about = [b'{"label": "cat"}', b'{"cls": 7}', b'{"label": ["a", "b"]}', b"{}", b"[" * 10_000, b'{"label": {}}']
    pairs = [((f"{n}.png", png()), (f"{n}.json", text)) for n, text in enumerate(about)]
    source = shards_at([put(tmp_path / "0.tar", *[member for pair in pairs for member in pair])], 1)
    assert [source.classes[n] if n >= 0 else None for n in source.all_labels()] == ["cat", "7", "a|b", None, None, None]
    assert counts(source) == {BAD_LABEL: 1}


def test_files_named_alike_up_to_the_first_dot_are_one_sample(tmp_path: Path) -> None:
    names = ["a.seg.png", "a.jpg", "b.v1.png", "b.v2.png", "c/a.jpg", "c.d/a.png"]
    source = shards_at([put(tmp_path / "0.tar", *[(name, png()) for name in names])], 1)
    assert keys(source) == [f"0.tar/{name}" for name in ("a.jpg", "b.v1.png", "b.v2.png", "c/a.jpg", "c.d/a.png")]
    assert counts(source) == {SECOND: 1}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_the_standard_library_finds(format: int) -> None:
    names = ["a.png", "ä/日.png", "d" * 60 + "/" + "e" * 60 + "/f.png", "./x.png", "\udcff.png"]
    names += ["g" * 300 + ".png"] if format != tarfile.USTAR_FORMAT else []
    folder = (info("folder", type=tarfile.DIRTYPE), b"")
    data = tar_of(folder, *[(name, b"x" * size) for size, name in enumerate(names, start=510)], format=format)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    found = [(os.fsdecode(m.name), m.offset, m.size) for m in members(io.BytesIO(data), len(data))]
    assert found == expected
    assert [name for name, _, _ in found] == names


def test_members_of_the_systems_tar_with_sparse_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with open(tmp_path / "holes.png", "wb") as file:
        for number in range(40):  # more holes than the first header of the old format can list
            file.seek(number * 200_000)
            file.write(b"x")
    (tmp_path / "z.png").write_bytes(png(9))
    for form in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={form}", "-cf", f"{form}.tar", "a.png", "holes.png", "z.png"]
        if subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode:
            pytest.skip("no GNU tar")
        source = shards_at([tmp_path / f"{form}.tar"], 1)
        assert keys(source) == [f"{form}.tar/a.png", f"{form}.tar/z.png"]
        assert source[1].image[0, 0, 0] == 9
        assert counts(source) == {SPARSE: 1}


def test_h14_odd_members_are_left_out_and_counted(tmp_path: Path) -> None:
    odd: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("../out.png", png()),
        ("a/../../out.png", png()),
        ("/etc/out.png", png()),
        ("..\\out.png", png()),
        (info("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (info("hard.png", type=tarfile.LNKTYPE, linkname="a.png"), b""),
        (info("device.png", type=tarfile.CHRTYPE), b""),
        (info("pipe.png", type=tarfile.FIFOTYPE), b""),
        ("._a.png", b"x"),
        ("@eaDir/a.png", b"x"),
        ("evil.pkl", b"cos\nsystem\n(S'touch ran'\ntR."),
        ("evil.pyd", b"MZ"),
        ("inner.tar", tar_of(("b.png", png()))),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    source = shards_at([put(tmp_path / "0.tar", ("a.png", png(1)), *odd, ("./z.png", png(3)), ("a.png", png(2)))], 1)
    assert keys(source) == ["0.tar/a.png", "0.tar/z.png"]
    assert [int(source[i].image[0, 0, 0]) for i in range(2)] == [1, 3]
    assert counts(source) == {LEADS_OUT: 4, IRREGULAR: 4, SYSTEM: 2, NO_IMAGE: 3, DUPLICATE: 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "0.tar", "cache"]), "nothing extracted"


@pytest.mark.parametrize(
    ("cut", "kept", "reasons"),
    [
        (3 * 1024, 3, {DAMAGED: 1}),
        (2 * 1024 + 512 + 20, 2, {CUT_OFF: 1, DAMAGED: 1}),
        (2 * 1024 + 100, 2, {DAMAGED: 1}),
    ],
)
def test_h14_a_truncated_shard_gives_what_is_whole(
    tmp_path: Path, cut: int, kept: int, reasons: dict[str, int]
) -> None:
    path = put(tmp_path / "0.tar", *[(f"{n}.png", png(n)) for n in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    source = shards_at([path], 1)
    assert (len(source), counts(source)) == (kept, reasons)
    assert source[kept - 1].image[0, 0, 0] == kept - 1


def header(size: bytes, type: bytes = b"0", name: bytes = b"x.png") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, type
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("block", "reasons"),
    [
        (header(b"\xff" * 12), {DAMAGED: 1}),
        (header(b"\xff" * 11 + b"\x00"), {DAMAGED: 1}),
        (header(b"-0000000512\0"), {DAMAGED: 1}),
        (header(b"\x80" + b"\xff" * 11), {CUT_OFF: 1, DAMAGED: 1}),
        (header(b"77777777777\0"), {CUT_OFF: 1, DAMAGED: 1}),
        (header(b"77777777777\0", b"L"), {DAMAGED: 1}),
        (header(b"77777777777\0", b"x"), {DAMAGED: 1}),
        (header(b"00000000014\0", b"x") + b"0 a=bcdefg\n".ljust(512, b"\0"), {DAMAGED: 1}),
        (header(b"00000000013\0", b"x") + b"11 size=-9\n".ljust(512, b"\0"), {DAMAGED: 1}),
        (header(b"00000000014\0", b"x") + b"12 size=9e9\n".ljust(512, b"\0"), {DAMAGED: 1}),
        (header(b"00000000013\0", b"x") + b"99999999 a=".ljust(512, b"\0"), {DAMAGED: 1}),
        (b"\1" * 512, {DAMAGED: 1}),
    ],
)
def test_h15_lengths_and_offsets_are_not_believed(tmp_path: Path, block: bytes, reasons: dict[str, int]) -> None:
    path = put(tmp_path / "0.tar", ("a.png", png(7)))
    path.write_bytes(path.read_bytes()[:1024] + block + png(8).ljust(512, b"\0") + bytes(1024))
    source = shards_at([path], 1)
    assert (len(source), counts(source)) == (1, reasons)
    assert source[0].image[0, 0, 0] == 7


@pytest.mark.parametrize("keep", [100, 512, 700, 1023])
def test_a_shard_that_is_cut_in_its_first_member_is_said_to_be_cut(tmp_path: Path, keep: int) -> None:
    path = put(tmp_path / "0.tar", ("a.png", png() + bytes(600)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        DataError, match="it ends within a header at byte 0" if keep < 512 else "no whole image.*cut off"
    ):
        shards_at([path], 1)


def test_a_member_above_the_limit_of_the_decoder_is_left_out(tmp_path: Path) -> None:
    with open(put(tmp_path / "0.tar", ("a.png", png())), "r+b") as file:
        file.seek(1024)
        file.write(header(b"%011o\0" % (600 << 20)))
        file.seek(600 << 20, os.SEEK_CUR)
        file.write(bytes(1024))  # a hole: no disk is used
    assert counts(shards_at([tmp_path / "0.tar"], 1)) == {TOO_LARGE: 1}


GOOD = tar_of(
    *[(f"{name}.png", png()) for name in ("a", "b" * 150, "ä")], ("a.cls", b"1"), format=tarfile.PAX_FORMAT
) + tar_of(("c" * 150, b""))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=20), st.integers(0, len(GOOD)))
def test_h15_any_damage_ends_the_walk_and_stays_inside_the_file(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(GOOD[:length])
    for place, value in changes:
        if place < length:
            data[place] = value
    found: list[Member] = []
    try:
        for member in members(io.BytesIO(data), len(data)):
            found.append(member)
            assert len(found) <= len(GOOD) // 512
    except DamagedTarError:
        pass
    assert all(m.left_out or (m.size >= 0 and 512 <= m.offset <= m.offset + m.size <= len(data)) for m in found)


def test_old_headers_without_a_mark_are_read() -> None:
    """The first tar had no `ustar`, marked folders with a slash and summed signed bytes."""
    block = bytearray(header(b"00000000003\0", b"\0", b"\xe9.png"))
    block[257:265] = bytes(8)
    total = sum(block[:148] + block[156:]) + 256 - 256
    block[148:156] = b"%06o\0 " % total
    data = bytes(block) + b"abc".ljust(512, b"\0") + header(b"0", b"\0", b"folder.png/") + bytes(1024)
    assert list(members(io.BytesIO(data), len(data))) == [Member(b"\xe9.png", 512, 3)]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\x1f\x8b\x08" + bytes(600), r"is no plain tar archive; compressed \(gzip\): .*; unpack it to a plain .tar"),
        (b"BZh9" + bytes(600), r"compressed \(bzip2\)"),
        (b"\xfd7zXZ\0" + bytes(600), r"compressed \(xz\)"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), r"compressed \(zstd\)"),
        (b"PK\3\4" + bytes(600), r"compressed \(zip\)"),
        (b"<!DOCTYPE html>" * 100, "is no tar archive; no header at byte 0"),
        (b"short", "is no tar archive; it ends within a header at byte 0"),
        (b"", "no whole image in .*; 1 damaged archive .*: the mark at its end is missing: it is cut off"),
        (bytes(10240), "no images in .*; no member has an image's extension"),
        (
            tar_of(("a.txt", b""), ("b.txt", b"")),
            "no member has an image's extension; there are 2 .txt; check the path",
        ),
    ],
)
@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz"])
def test_h16_what_is_no_plain_archive_is_refused_with_advice(
    tmp_path: Path, content: bytes, cause: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=cause):
        open_source(str(tmp_path / name), 1)


def test_expand() -> None:
    assert expand("a") == ["a"]
    assert expand("s-{08..11}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert expand("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    assert expand("{7..7}") == ["7"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s-{000..009.tar", "cannot read the pattern .*; a brace is alone; as in shards-"),
        ("s-000}.tar", "a brace is alone"),
        ("s-{{0..1}}.tar", "a brace is alone"),
        ("s-{}.tar", "cannot read {} in s-{}.tar; count as in"),
        ("s-{5..2}.tar", "cannot read {5..2} .*; it counts from 5 to 2; at most 100000, upwards"),
        ("s-{0..99999999999}.tar", "it counts from 0 to 99999999999"),
        ("{0..999}{0..999}", "more than 100000 shards"),
        ("{a..c}", "cannot read {a..c}"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand(pattern)


def test_missing_shards_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    put(tmp_path / "0.tar", ("a.png", png()))
    with pytest.raises(DataError, match=r"no shard .*/1\.tar \(and 1 more\); it does not exist or is no file; check"):
        open_source(f"{tmp_path}/{{0..2}}.tar", 1)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose headers are read."""
    seen: list[str] = []
    build = tar_index.build_index

    def spy(file: Any, length: int, name: str) -> Any:
        seen.append(Path(name).name)
        return build(file, length, name)

    monkeypatch.setattr(shards, "build_index", spy)
    return seen


def state(source: Shards) -> tuple[object, ...]:
    pixels = [source[i].image.tobytes() for i in range(len(source))]
    left_out = source.left_out
    return keys(source), pixels, source.classes, left_out.as_dict(), left_out.suffix_line(), source.notes


def test_an_index_is_built_once_and_again_only_for_the_shard_that_changed(tmp_path: Path, built: list[str]) -> None:
    paths = [
        put(
            tmp_path / f"{n}.tar",
            (f"\udcff{n}.png", png(n)),
            (f"\udcff{n}.cls", b"%d" % n),
            ("x.txt", b""),
            (".a", b""),
        )
        for n in range(3)
    ]
    first = state(shards_at(paths, 1))
    assert built == ["0.tar", "1.tar", "2.tar"]
    assert state(shards_at(paths, 1)) == first
    assert len(built) == 3
    put(paths[1], ("new.png", png(9)), ("new.cls", b"1"), ("x.txt", b""), (".a", b""))
    assert keys(shards_at(paths, 1))[1] == "1.tar/new.png"
    assert built[3:] == ["1.tar"]


OTHERS = [("version", 0), ("size", 1), ("shard", "/x"), ("mtime_ns", 1), ("extensions", [])]
DAMAGES = [
    (rb'"count": 1', rb'"count": %s' % count)
    for count in (b"1e999", b"Infinity", b"-1", b"2", b"9" * 400, b"1.0", b"true", b"null", b"[" * 100_000)
]
DAMAGES += [
    (rb'"label_names": .*?\], ', b""),
    (rb'"label_names": \["7"\]', b'"label_names": []'),
    (rb'"label_names": \["7"\]', b'"label_names": 5'),
    (rb'"left_out": \[\]', b'"left_out": [["x", 1]]'),
    (rb'"suffixes": \[\]', b'"suffixes": {}'),
]


def sealed(head: bytes, body: bytes) -> bytes:
    """An index with the digest of what it holds."""
    content = head + b"\n" + body
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def test_h19_an_index_is_rebuilt_when_anything_about_it_is_different(
    tmp_path: Path, cache: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a" / "0.tar", ("a.png", png(5)), ("a.cls", b"7"))
    shards_at([path], 1)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    _, head, body = good.split(b"\n", 2)
    of = json.loads(head)["of"]
    changed = [sealed(json.dumps(json.loads(head) | {"of": of | {key: value}}).encode(), body) for key, value in OTHERS]
    changed += [sealed(re.sub(*change, head, count=1), body) for change in DAMAGES]
    flipped = [good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :] for place in range(len(good))]
    damaged = [
        b"",
        b"\n",
        b"[]\n",
        good[:-1],
        good[:-1] + b"!",
        body,
        sealed(head, b""),
        head + b"\n" + body,
        b"\x80\x04." + good,
        sealed(b"{}", body),
    ]
    for content in changed + damaged + flipped:
        kept.write_bytes(content)
        built.clear()
        assert shards_at([path], 1)[0].image[0, 0, 0] == 5
        assert built == ["0.tar"]
        assert kept.read_bytes() == good

    other = tmp_path / "good"
    other.write_bytes(good)
    for make in (lambda: kept.symlink_to(other), lambda: os.mkfifo(kept)):
        kept.unlink()
        make()
        built.clear()
        shards_at([path], 1)
        assert built == ["0.tar"], "neither links nor pipes are opened"
    kept.unlink()

    # The same cache file under another root does not speak for another shard.
    other = put(tmp_path / "b" / "0.tar", ("b.png", png(6)))
    assert keys(shards_at([other], 1)) == ["0.tar/b.png"]
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    built.clear()
    shards_at([path], 1)
    assert built == ["0.tar"], "another user's index is not trusted"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "file"))
    assert len(shards_at([put(tmp_path / "0.tar", ("a.png", png()))], 1)) == 1


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({"SMALTI_CACHE": "/x"}, "/x"), ({"XDG_CACHE_HOME": "/y"}, "/y/smalti"), ({"HOME": "/z"}, "/z/.cache/smalti")],
)
def test_the_cache_folder_is_the_users(variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALTI_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_a_shard_that_shrinks_or_goes_while_it_is_used_is_a_bad_image(tmp_path: Path) -> None:
    path = put(tmp_path / "0.tar", ("a.png", png()))
    source = shards_at([path], 1)
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(DataError, match=r"cannot read .*0\.tar/a\.png; the shard has become shorter"):
        source.read(0)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*0\.tar/a\.png; No such file"):
        source[0]


INDEX = """
from pathlib import Path
from smalti.data.datasets.tar_index import build_index

def work():
    path = Path(sys.argv[1])
    with open(path, "rb") as file:
        index = build_index(file, path.stat().st_size, str(path))
    assert len(index.names) == 20_000
    return index
"""


@pytest.mark.slow
def test_h14_a_million_members_cost_less_than_150_megabytes(tmp_path: Path) -> None:
    """Measured on 20 000 images with labels."""
    with open(tmp_path / "0.tar", "wb") as file:
        for number in range(20_000):
            name = b"class_%03d/photograph_%08d" % (number % 999, number)
            file.write(header(b"00000000001\0", name=name + b".jpg") + b"x".ljust(512, b"\0"))
            file.write(header(b"00000000001\0", name=name + b".cls") + b"3".ljust(512, b"\0"))
        file.write(bytes(1024))
    assert peak_of(INDEX, str(tmp_path / "0.tar")) * 50 < 150e6


def test_progress_is_shown_while_shards_are_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards_at([put(tmp_path / "0.tar", ("a.png", png()))], 1, Log())
    assert "index MB" in capsys.readouterr().err
