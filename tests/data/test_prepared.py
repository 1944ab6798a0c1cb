"""A prepared data set: read back as it was written, by whatever threads or processes; damaged ones are refused."""

import json
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import DataError
from smalti.core.files import sha256, write_json
from smalti.core.log import Log
from smalti.data import npy
from smalti.data.datasets.concat import ConcatDataset
from smalti.data.datasets.folder import Folder
from smalti.data.datasets.open import Part, ReadOptions, open_source
from smalti.data.datasets.prepared import DamagedShardError, Prepared, digest_of, read_index
from smalti.data.load import Data
from smalti.data.values import Window
from smalti.data.write_shards import write_shards
from tests.contracts import check_dataset
from tests.data.prepared import SHARD, fill, raw_settings
from tests.data.test_listing import peak_of

Change = Callable[[dict[str, Any]], None]
EVERY_PAGE = ReadOptions(pages="all")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures in two classes, one of them unreadable."""
    root = fill(tmp_path / "photos" / "cats", 10).parent
    fill(root / "dogs", 10, first=10)
    (root / "cats" / "003.png").write_text("no image")
    return root


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Path:
    """What is prepared of them, in several shards."""
    source = Folder(photos, 3)
    write_shards(source, tmp_path / "shards", raw_settings(source), Log(), 0.1, SHARD)
    return tmp_path / "shards"


def test_a_prepared_data_set_has_the_images_names_and_labels_of_its_source(photos: Path, packed: Path) -> None:
    source, made = Folder(photos, 3), Prepared(packed, 3)
    check_dataset(made)
    readable = [position for position in range(20) if position != 3]
    assert len(made) == 19
    assert len(made.about.shards) > 2
    assert made.kind == "prepared"
    assert made.classes == source.classes == ("cats", "dogs")
    for index, position in enumerate(readable):
        expected, found = source.shrunk(position, 16), made[index]
        assert np.array_equal(expected.image, found.image)
        assert (expected.key, expected.label) == (found.key, found.label)
        assert made.length(index) == len(made.read(index))
    assert made.name(0) == f"{packed}/shard-00000.tar/cats/000.png"
    assert made.left_out.as_dict() == {
        "unreadable when it was prepared": {"count": 1, "first": str(photos / "cats" / "003.png")}
    }
    assert made.notes == ()


def test_a_prepared_data_set_without_classes_has_no_labels_and_odd_names_survive(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", 3)
    (root / "000.png").rename(root / "\udcff\n.png")
    source = Folder(root, 1)
    write_shards(source, tmp_path / "shards", raw_settings(source), Log())
    made = Prepared(tmp_path / "shards", 1)
    assert (made.labels, made.classes, made[0].label) == (None, (), -1)
    assert {made.key(index) for index in range(3)} == {"001.png", "002.png", "\udcff\n.png"}


def test_colours_are_those_asked_for_when_reading(packed: Path, photos: Path, tmp_path: Path) -> None:
    assert Prepared(packed, 1)[0].image.shape[2] == 1
    source = Folder(photos, 1)
    write_shards(source, tmp_path / "grey", raw_settings(source, channels=1), Log(), 0.1)
    assert Prepared(tmp_path / "grey", 3)[0].image.shape[2] == 3
    assert Prepared(tmp_path / "grey", 3).notes == ("what was prepared is grey",)


def windowed(root: Path, split: str, window: Window) -> Path:
    """Stacks of two pages of 12 bits, and the shards of a split that are prepared of them with a value window."""
    for number, label in enumerate(("cats", "dogs")):
        (root / split / label).mkdir(parents=True)
        first, second = (Image.fromarray(np.full((20, 20), 1000 * (number + page), np.uint16)) for page in (1, 2))
        first.save(root / split / label / "a.tif", save_all=True, append_images=[second])
    source = open_source(str(root / split), 1, options=EVERY_PAGE, window=window)
    write_shards(source, root / "shards" / split, raw_settings(source, channels=1, window=window), Log(), 0.1, SHARD)
    return root / "shards" / split


def test_a_value_window_is_applied_once_also_behind_pages_and_splits(tmp_path: Path) -> None:
    window = (0.0, 4000.0)
    train, test = windowed(tmp_path, "train", window), windowed(tmp_path, "test", window)
    whole = str(train.parent)
    cases: list[tuple[str, Part, int]] = [(str(train), "train", 4), (whole, "train", 4), (whole, "all", 8)]
    for options in (ReadOptions(), EVERY_PAGE):
        for path, part, count in cases:
            source = open_source(path, 1, options=options, part=part, window=window)
            values = [int(source[index].image[0, 0, 0]) for index in range(count)]
            assert values == [64, 128, 128, 191] * (count // 4), (options.pages, path, part)
            with pytest.raises(DataError, match="another value window"):
                open_source(path, 1, options=options, part=part, window=(0.0, 100.0))
        assert isinstance(open_source(whole, 1, options=options, part="all"), ConcatDataset), (
            "check says what the splits are"
        )
    for asked in (None, "auto"):
        assert Data(whole, channels=1, window=asked).measured().window == window
    (test / "shard-00000.tar").write_bytes(bytes((test / "shard-00000.tar").stat().st_size))
    for options in (ReadOptions(), EVERY_PAGE):
        with pytest.raises(DamagedShardError):
            open_source(whole, 1, options=options, part="all").verify(Log())


def test_the_value_window_of_shards_that_are_not_learned_from_is_not_taken_over(tmp_path: Path) -> None:
    """Neither of those that lie beside images that were not prepared, nor of another split."""
    shards = windowed(tmp_path, "photos", (100.0, 200.0))
    shards.rename(tmp_path / "photos" / "shards")
    assert Data(str(tmp_path / "photos"), channels=1).measured().window is None
    train = windowed(tmp_path, "train", (0.0, 4000.0))
    (train.parent / "train").rename(train.parent / "test")
    source = Folder(tmp_path / "photos", 1)
    write_shards(source, train.parent / "train", raw_settings(source, channels=1), Log(), 0.1, SHARD)
    assert Data(str(train.parent), channels=1).measured().window is None


def test_splits_with_different_value_windows_are_refused(tmp_path: Path) -> None:
    train = windowed(tmp_path, "train", (0.0, 4000.0))
    windowed(tmp_path, "test", (0.0, 3000.0))
    with pytest.raises(DataError, match=r"different value windows; train: \(0.0, 4000.0\); test: \(0.0, 3000.0\)"):
        open_source(str(train.parent), 1, part="all")


def test_the_fingerprint_changes_with_the_content_also_behind_pages_and_splits(tmp_path: Path) -> None:
    found = set()
    for number, window in enumerate(((0.0, 4000.0), (0.0, 3000.0))):
        root = tmp_path / str(number)
        train, _ = windowed(root, "train", window), windowed(root, "test", window)
        found.add(open_source(str(train), 1, options=EVERY_PAGE).fingerprint())
        found.add(open_source(str(train.parent), 1, part="all").fingerprint())
    assert len(found) == 4, "pixels without loss, so that names, labels and sizes are the same"


def test_the_fingerprint_is_that_of_the_content_alone(photos: Path, packed: Path, tmp_path: Path) -> None:
    moved = photos.rename(tmp_path / "elsewhere")
    source = Folder(moved, 3)
    write_shards(source, tmp_path / "again", raw_settings(source), Log(), 0.1, SHARD)
    assert Prepared(tmp_path / "again", 3).fingerprint() == Prepared(packed, 3).fingerprint()
    fill(moved / "dogs", 1, first=77)
    source = Folder(moved, 3)
    write_shards(source, tmp_path / "more", raw_settings(source), Log(), 0.1, SHARD)
    assert Prepared(tmp_path / "more", 3).fingerprint() != Prepared(packed, 3).fingerprint()


def test_it_can_be_sent_to_another_process_after_it_was_read(packed: Path) -> None:
    made = Prepared(packed, 3)
    before = [made.read(index) for index in range(len(made))]
    sent = pickle.dumps(made)
    assert before[0] not in sent
    copy = pickle.loads(sent)
    assert [copy.read(index) for index in range(len(copy))] == before


def test_many_threads_may_read(packed: Path) -> None:
    expected = [Prepared(packed, 3).read(index) for index in range(19)]
    made = Prepared(packed, 3)
    order = [index * 7 % 19 for index in range(19)] * 20
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(made.read, order)) == [expected[index] for index in order]


def test_an_unfinished_data_set_is_refused(packed: Path) -> None:
    (packed / "prepared.json").unlink()
    message = r"shards is not finished; it has no prepared\.json; run the same smalti prepare again"
    with pytest.raises(DataError, match=message):
        Prepared(packed, 3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_shard_is_named_when_opened_or_verified(packed: Path) -> None:
    flip(packed / "shard-00001.tar")
    made = Prepared(packed, 3)  # sizes are right, and nothing more is looked at
    with pytest.raises(
        DataError, match=r"shard-00001\.tar is damaged; it differs from its digest; run the same smalti p"
    ):
        made.verify(Log())
    flip(packed / "shard-00001.tar")
    made.verify(Log())
    size = (packed / "shard-00001.tar").stat().st_size
    cut(packed / "shard-00001.tar")
    with pytest.raises(DataError, match=rf"shard-00001\.tar is damaged; it has {size - 1} bytes, not {size}"):
        Prepared(packed, 3)
    (packed / "shard-00001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.tar is damaged; it is missing"):
        Prepared(packed, 3)
    (packed / "shard-00001.tar").mkdir()
    with pytest.raises(DataError, match=r"shard-00001\.tar is damaged"):
        Prepared(packed, 3)


def test_a_shard_that_shrinks_or_goes_while_it_is_read_is_an_error_and_no_crash(packed: Path) -> None:
    made = Prepared(packed, 3)
    made.read(0)
    os.truncate(packed / "shard-00000.tar", 0)
    with pytest.raises(DataError, match=r"cannot read .*shard-00000\.tar/cats/000\.png; the shard has become shorter"):
        made.read(0)
    os.truncate(packed / "shard-00001.tar", 0)
    with pytest.raises(DataError, match=r"cannot read .*shard-00001\.tar/cats/002\.png; the shard has become shorter"):
        made.read(made.about.shards[0].images)
    (packed / "shard-00002.tar").unlink()
    with pytest.raises(DataError, match=r"cannot read .*shard-00002\.tar/.*; No such file"):
        made.read(made.about.shards[0].images + made.about.shards[1].images)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_index_is_named(packed: Path, damage: Callable[[Path], None]) -> None:
    damage(packed / "shard-00001.index")
    with pytest.raises(DataError, match=r"shard-00001\.index"):
        Prepared(packed, 3)


def test_shards_of_another_are_refused(packed: Path, tmp_path: Path) -> None:
    source = Folder(fill(tmp_path / "other", 20), 3)
    write_shards(source, tmp_path / "strange", raw_settings(source), Log(), shard_bytes=SHARD)
    for path in (tmp_path / "strange").glob("shard-00001.*"):
        path.replace(packed / path.name)
    with pytest.raises(
        DataError, match=r"shard-00001\.index is damaged; it is not the one that prepared\.json speaks of"
    ):
        Prepared(packed, 3)


@pytest.mark.parametrize("name", ["prepared.json", "shard-00000.index"])
def test_a_later_format_is_refused_by_its_number(packed: Path, name: str) -> None:
    line, _, body = (packed / name).read_bytes().replace(b"\n", b"\n" if "index" in name else b" ").partition(b"\n")
    field = "smalti_shard" if "index" in name else "smalti_prepared"
    (packed / name).write_bytes(json.dumps(json.loads(line) | {field: 2}).encode() + b"\n" + body)
    message = (
        rf"cannot read .*{name}; its format is 2, and this smalti reads 1; prepare it again, or use another version"
    )
    with pytest.raises(DataError, match=message):
        Prepared(packed, 3)


def forge(folder: Path, change: Change, body: Callable[[bytes], bytes] = bytes) -> None:
    """Change the first index and make every digest and count fit again, as someone who means harm would."""
    path = folder / "shard-00000.index"
    line, _, old = path.read_bytes().partition(b"\n")
    header, about = json.loads(line), json.loads((folder / "prepared.json").read_bytes())
    new = body(old)
    header["shard"]["index_sha256"] = sha256(new)
    change(header)
    path.write_bytes(json.dumps(header).encode() + b"\n" + new)
    about["shards"][0] = header["shard"]
    about["settings"] = header["settings"]
    shards = [(shard["sha256"], shard["index_sha256"]) for shard in about["shards"]]
    about["images"] = sum(shard["images"] for shard in about["shards"])
    about["digest"] = sha256(json.dumps([about["classes"], shards]).encode())
    (folder / "prepared.json").write_text(json.dumps(about))


def numbers(kind: str, start: int, *values: int) -> Callable[[bytes], bytes]:
    """Put numbers into the arrays."""
    new = np.array(values, kind).tobytes()
    return lambda body: body[:start] + new + body[start + len(new) :]


def shard(**fields: Any) -> Change:
    return lambda header: header["shard"].update(fields)


def field(**fields: Any) -> Change:
    return lambda header: header.update(fields)


def count_of(packed: Path) -> int:
    return read_index(packed / "shard-00000.index")[0].shard.images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shard(images=2**62), r"shard-00000\.index is damaged; no room for 4611686018427387904 images"),
        (shard(images=10**30), r"prepared\.json is damaged; no JSON object with smalti_prepared"),
        (shard(images=-1), r"shard-00000\.index is damaged; no room for -1 images"),
        (shard(bytes=-5), r"shard-00000\.index is damaged; images or names lie outside the shard"),
        (shard(bytes=2**64), r"shard-00000\.index is damaged; images or names lie outside the shard"),
        (field(start=-1), r"shard-00000\.index is damaged; no room for"),
        (field(start=3), r"shard-00000\.index is damaged; it is not the one that prepared\.json speaks of"),
        (field(start=1.0), r"shard-00000\.index is damaged; .*start is 1\.0, expected int"),
        (field(start=True), r"shard-00000\.index is damaged; .*start is True, expected int"),
        (
            field(unreadable=[["x", 1, 2]]),
            r"shard-00000\.index is damaged; .*unreadable\[0\]\[0\] is 'x', expected int",
        ),
        (field(unreadable={"a": 1}), r"shard-00000\.index is damaged; .*expected a list"),
        (field(more=1), r"shard-00000\.index is damaged; unknown field shard-00000\.index\.more"),
        (lambda header: header.pop("start"), r"shard-00000\.index is damaged; shard-00000\.index\.start is missing"),
        (lambda header: header["settings"].update(encoding="exec"), r"is damaged; .*encoding is 'exec'"),
    ],
)
def test_a_hostile_header_is_a_data_error(packed: Path, change: Change, message: str) -> None:
    forge(packed, change)
    with pytest.raises(DataError, match=message):
        Prepared(packed, 3)


def test_hostile_arrays_are_a_data_error(packed: Path) -> None:
    count, untouched = count_of(packed), (packed / "shard-00000.index").read_bytes()
    about = (packed / "prepared.json").read_bytes()
    cases = [
        (numbers("<u8", 8 * count, 2**63), "images or names lie outside"),
        (numbers("<i8", 8 * count, -1), "images or names lie outside"),
        (numbers("<u8", 8 * count, 10**9), "images or names lie outside"),
        (numbers("<u4", 16 * count, 2**32 - 1), "images or names lie outside"),
        (numbers("<u8", 8 * (count - 1), 10**9), "images or names lie outside"),
        (numbers("<u8", 0, 2**64 - 1), "images or names lie outside"),
        (lambda body: body[: 24 * count], "images or names lie outside"),
        (lambda body: body[: 24 * count - 1], "no room for"),
        (numbers("<i4", 20 * count, 2), "labels lie outside the 2 classes"),
        (numbers("<i4", 20 * count, -2), "labels lie outside the 2 classes"),
        (numbers("<i4", 20 * count, -(2**31)), "labels lie outside the 2 classes"),
    ]
    for body, message in cases:
        (packed / "shard-00000.index").write_bytes(untouched)
        (packed / "prepared.json").write_bytes(about)
        forge(packed, lambda header: None, body)
        with pytest.raises(DataError, match=f"is damaged; {message}"):
            Prepared(packed, 3)


def test_names_are_names_only_and_never_opened(packed: Path, tmp_path: Path) -> None:
    count = count_of(packed)
    (tmp_path / "secret").write_text("secret")
    forge(
        packed, lambda header: None, lambda body: body[: 24 * count] + b"../secret".ljust(len(body) - 24 * count, b"x")
    )
    made = Prepared(packed, 3)
    assert made.key(0).startswith("../secret")
    assert made.read(0).startswith(npy.MAGIC)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": 10**12}, "the number of images is not that of its shards"),
        ({"unreadable": -1}, "the number of images is not that of its shards"),
        ({"digest": "0"}, "classes and shards differ from the digest"),
        ({"classes": ["a"]}, "classes and shards differ from the digest"),
        ({"classes": "ab"}, "classes is 'ab', expected a list"),
        ({"shards": [{"name": "../../x"}]}, r"unknown field prepared\.json\.shards\[0\]\.name"),
        ({"shards": 5}, "shards is 5, expected a list"),
        ({"smalti_prepared": 1.0}, "smalti_prepared is 1.0, expected int"),
    ],
)
def test_a_hostile_description_is_a_data_error(packed: Path, fields: dict[str, Any], message: str) -> None:
    about = json.loads((packed / "prepared.json").read_bytes())
    (packed / "prepared.json").write_text(json.dumps(about | fields))
    with pytest.raises(DataError, match=rf"prepared\.json is damaged; .*{message}"):
        Prepared(packed, 3)


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "null", '"smalti_prepared"', "{}", "[" * 100_000, "1" * 10_000, "\x00"]
)
def test_what_is_no_description_is_a_data_error(packed: Path, text: str) -> None:
    (packed / "prepared.json").write_text(text)
    with pytest.raises(DataError, match=r"prepared\.json is damaged; no JSON object with smalti_prepared"):
        Prepared(packed, 3)


def test_a_prepared_data_set_of_nothing_is_a_data_error(packed: Path) -> None:
    about = json.loads((packed / "prepared.json").read_bytes())
    about |= {"shards": [], "images": 0, "digest": digest_of(tuple(about["classes"]), ())}
    write_json(packed / "prepared.json", about)
    with pytest.raises(DataError, match=r"prepared\.json is damaged; it has no images"):
        Prepared(packed, 3)


@given(st.sampled_from(["prepared.json", "shard-00001.index"]), st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_to_a_small_file_the_data_set_is_right_or_refused(packed: Path, name: str, data: Any) -> None:
    whole = (packed / name).read_bytes()
    place, cut_out = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 9))
    changed = whole[:place] + data.draw(st.binary(max_size=3)) + whole[place + cut_out :]
    (packed / name).write_bytes(changed)
    try:
        opened, refusal = Prepared(packed, 3), ""
    except DataError as error:
        opened, refusal = None, str(error)
    (packed / name).write_bytes(whole)
    if opened is None:
        assert re.search(r"prepared\.json|shard-0000[01]\.(index|tar)", refusal)
    else:
        assert opened.about.digest == Prepared(packed, 3).about.digest
        assert opened[18].label == 1


MANY = """
from pathlib import Path
from smalti.data.datasets.prepared import Prepared, Settings
from smalti.data.shard_writer import Record
from smalti.data.shard_writer import ShardWriter
from smalti.data.write_shards import _close

folder = Path(sys.argv[1])
settings, headers = Settings("/data", "folder", 16, "raw", None, 3, None, 100_000, ""), []
for number in range(4):
    writer = ShardWriter(folder, number, 25_000 * number, settings)
    for index in range(25_000):
        writer.add(25_000 * number + index, Record(b"x", 0, f"n{number:08d}/n{number:08d}_{index:06d}.JPEG"))
    headers.append(writer.finish())
_close(folder, settings, ("a",), headers)


def work():
    opened = Prepared(folder, 3)
    assert len(opened) == 100_000
    return opened
"""


@pytest.mark.slow
def test_a_hundred_thousand_images_cost_less_than_fifteen_megabytes(tmp_path: Path) -> None:
    """1 000 000: less than 150 MB."""
    assert peak_of(MANY, str(tmp_path)) < 15_000_000
