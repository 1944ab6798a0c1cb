"""`smalti check`: what it counts, finds and prints."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.cli import main as smalti
from smalti.core.errors import DataError, UsageError
from smalti.data.duplicates import content_digest, difference_hash, equal_rows, near_rows
from smalti.runs.check import Check, main


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A smooth picture that no other seed resembles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, picture: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of three kinds and sizes; a copy, a near copy, two unreadable files and a pipe."""
    root = tmp_path / "photos"
    put(root / "cat" / "0.png", scene(0))
    put(root / "cat" / "1.jpg", scene(1, (300, 600)), quality=95)
    put(root / "dog" / "2.png", scene(2).convert("L"))
    put(root / "dog" / "3.png", scene(3, (20, 20)))
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "0.png").read_bytes())
    put(root / "dog" / "near.jpg", scene(0, (64, 54)), quality=80)
    (root / "dog" / "text.jpg").write_text("no image")
    (root / "dog" / "evil\x1b[31m.png").write_bytes((root / "cat" / "0.png").read_bytes()[:200])
    (root / "cat" / "notes.txt").touch()
    os.mkfifo(root / "cat" / "pipe.jpg")
    return root


def test_everything_is_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = main(Check(str(photos)))
    assert (result["kind"], result["images"], result["checked"], result["readable"]) == ("folder", 8, 8, 6)
    assert result["formats"] == {"PNG": 4, "JPEG": 2}
    assert result["modes"] == {"RGB": 5, "L": 1}
    assert result["classes"] == {"cat": 2, "dog": 4}
    assert result["sizes"]["shorter_side"] == {"0-31": 1, "32-63": 1, "64-127": 3, "256-511": 1}
    assert result["sizes"]["width"] == [20, 96, 300]
    assert {name: about["count"] for name, about in result["left_out"].items()} == {
        "no image's extension": 1,
        "not a regular file": 1,
    }
    cat, dog = photos / "cat", photos / "dog"
    assert result["exact_duplicates"]["examples"] == [[f"{cat}/0.png", f"{dog}/copy.png"]]
    assert result["near_duplicates"]["examples"] == [[f"{cat}/0.png", f"{dog}/near.jpg"]]
    assert result["unreadable"]["count"] == 2
    assert {file["path"] for file in result["unreadable"]["files"]} == {f"{dog}/text.jpg", f"{dog}/evil\x1b[31m.png"}
    assert all(file["reason"] for file in result["unreadable"]["files"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert f"{dog}/evil\\x1b[31m.png: " in printed
    for line in (
        "images        8 (folder)",
        "unreadable    2",
        "formats       PNG 4, JPEG 2",
        "exact copies  2 images",
    ):
        assert line in printed


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path: Path) -> None:
    pictures = [scene(1), scene(2, (60, 90))]
    for number, picture in enumerate(pictures):
        put(tmp_path / f"{number}.png", picture)
    result = main(Check(str(tmp_path)))
    pixels = np.concatenate([np.asarray(picture).reshape(-1, 3) for picture in pictures]) / 255
    np.testing.assert_allclose(result["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(result["std"], pixels.std(0), rtol=1e-9)
    assert len(main(Check(str(tmp_path), channels=1))["mean"]) == 1


def test_json_is_one_object_on_the_last_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "\udcff.png").write_bytes(b"")
    assert smalti(["check", str(photos), "--limit", "100", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert str(photos / "\udcff.png") in {file["path"] for file in result["unreadable"]["files"]}
    assert result["images"] == 9


def test_lists_shards_and_the_embedded_images_can_be_checked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    listed = photos / "list.csv"
    listed.write_text("path,label\ncat/0.png,cat\nnowhere.png,dog\n")
    result = main(Check(str(listed)))
    assert (result["kind"], result["readable"], result["classes"]) == ("list", 1, {"cat": 1, "dog": 0})
    assert result["unreadable"]["reasons"] == {"No such file or directory": 1}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(photos / "cat" / "0.png", "a.png")
        archive.add(photos / "cat" / "0.png", "../b.png")
    result = main(Check(str(tmp_path / "0.tar")))
    assert (result["kind"], result["formats"]) == ("shards", {"PNG": 1})
    assert result["left_out"]["path out of the archive"]["count"] == 1
    result = main(Check("embedded", channels=1, limit=50))
    assert (result["images"], result["checked"], result["formats"]) == (20_000, 50, {"array": 50})


def test_nothing_readable_is_a_result_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.png").write_text("x")
    result = main(Check(str(tmp_path)))
    assert (result["mean"], result["readable"], result["unreadable"]["count"]) == (None, 0, 30)
    assert "and 20 more, named by --json" in capsys.readouterr().out


def test_a_table_without_a_column_of_labels_says_what_is_there(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = photos / "table.csv"
    table.write_text("path,species,site\ncat/0.png,lynx,a\ncat/1.jpg,lynx,b\ndog/2.png,wolf,a\n")
    assert main(Check(str(table)))["no_labels"].startswith("the columns are path, species, site; labels are looked for")
    assert (
        "no classes    the columns are path, species, site; labels are looked for in label," in capsys.readouterr().out
    )


def test_images_without_a_label_are_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = photos / "table.csv"
    table.write_text("path,label\ncat/0.png,lynx\ncat/1.jpg,\ndog/2.png,wolf\n")
    assert main(Check(str(table)))["unlabelled"] == 1
    assert "classes       2, of 1 to 1 images; 1 without a label\n" in capsys.readouterr().out


def test_no_data_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere; it does not exist"):
        main(Check(str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, "0 channels"),
        ({"side": 8}, "a side of 8"),
        ({"distance": 4}, "4 bits"),
        ({"limit": 0}, "0 im"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Check("x", **fields)


def test_a_picture_saved_otherwise_keeps_its_hash_and_another_picture_does_not() -> None:
    def bits(first: tuple[int, int], second: tuple[int, int]) -> int:
        return max((one ^ other).bit_count() for one, other in zip(first, second, strict=True))

    for seed in range(20):
        picture = scene(seed, (200, 160))
        file = io.BytesIO()
        picture.resize((90, 72), Image.Resampling.LANCZOS).save(file, "jpeg", quality=70)
        original = difference_hash(np.asarray(picture))
        assert bits(original, difference_hash(np.asarray(Image.open(file)))) <= 2
        assert bits(original, difference_hash(np.asarray(scene(seed + 100, (200, 160))))) > 10
    assert difference_hash(np.full((9, 9, 1), 7, np.uint8)) == (0, 0)


hashes = st.lists(st.tuples(*[st.sampled_from([0, 1, 3, 7, 15, 1 << 40, 3 << 40, 2**64 - 1])] * 2), max_size=30)


@given(hashes, st.integers(0, 3))
def test_groups_are_those_of_comparing_all_with_all(values: list[tuple[int, int]], distance: int) -> None:
    rows = np.array(values, np.uint64).reshape(-1, 2)
    exact = {value: [i for i, other in enumerate(values) if other == value] for value in values}
    assert equal_rows(rows) == sorted(group for group in exact.values() if len(group) > 1)

    group = {i: {i} for i, value in enumerate(values) if any(value)}
    for i in group:
        for j in group:
            if all((a ^ b).bit_count() <= distance for a, b in zip(values[i], values[j], strict=True)):
                joined = group[i] | group[j]
                group.update(dict.fromkeys(joined, joined))
    expected = sorted({tuple(sorted(members)) for members in group.values() if len(members) > 1})
    assert sorted(map(tuple, near_rows(rows, distance))) == expected


def test_digests_tell_files_apart() -> None:
    assert content_digest(b"a") == content_digest(b"a") != content_digest(b"b")


def test_grey_images_in_three_channels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.png", scene(number).convert("L").convert("RGB"))
    assert main(Check(str(tmp_path)))["grey"]
    assert "note          every image is grey" in capsys.readouterr().out
    put(tmp_path / "colour.png", scene(9))
    assert not main(Check(str(tmp_path)))["grey"]
    assert "every image is grey" not in capsys.readouterr().out
