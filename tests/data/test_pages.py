"""The pages of TIFF files as images."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data.datasets.folder import Folder
from smalti.data.datasets.open import ReadOptions, open_source
from smalti.data.datasets.pages import unread_pages
from smalti.data.decode import decode_bytes
from smalti.data.tiff import count_pages, page_first
from tests.contracts import check_dataset
from tests.data.tables import png, save_to_disk, write

SHADES = (20, 90, 200)


def stack(**options: object) -> bytes:
    first, *others = (Image.fromarray(np.full((6, 8), shade, np.uint8)) for shade in SHADES)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=others, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"big_tiff": True}, {"compression": "tiff_adobe_deflate"}])
def test_any_page_can_come_first(options: dict[str, object]) -> None:
    data = stack(**options)
    assert count_pages(data) == 3
    for page, shade in enumerate(SHADES):
        assert (decode_bytes(page_first(data, page), "a", 1) == shade).all()


def test_previews_are_no_pages() -> None:
    assert count_pages(stack(tiffinfo={254: 1})) == 1  # all of them are called previews
    assert count_pages(stack(tiffinfo={254: 2})) == 3  # pages of a document


@pytest.mark.parametrize("data", [b"", b"II*\0", b"II*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"\x89PNG", b"MM\0+"])
def test_what_has_no_directories_is_one_image(data: bytes) -> None:
    assert count_pages(data) == 1


def test_directories_in_a_circle_end() -> None:
    data = bytearray(stack())
    place = int.from_bytes(data[4:8], "little")
    end = place + 2 + 12 * int.from_bytes(data[place : place + 2], "little")
    data[end : end + 4] = data[4:8]
    assert count_pages(bytes(data)) == 1


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "stack.tif").write_bytes(stack())
    (tmp_path / "b" / "cut.tif").write_bytes(stack()[:60])
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(tmp_path / "b" / "plain.png")
    return tmp_path


def test_a_folder_of_stacks_and_others_is_a_dataset(mixed: Path) -> None:
    (mixed / "b" / "cut.tif").unlink()
    check_dataset(open_source(str(mixed), 1, options=ReadOptions(pages="all")))


def test_pages_have_the_label_of_their_file_and_names_of_their_own(mixed: Path) -> None:
    source = open_source(str(mixed), 1, options=ReadOptions(pages="all"))
    keys = [source.key(index) for index in range(len(source))]
    assert keys == ["a/stack.tif#0", "a/stack.tif#1", "a/stack.tif#2", "b/cut.tif", "b/plain.png"]
    assert [source.label(index) for index in range(5)] == [0, 0, 0, 1, 1]
    copy = pickle.loads(pickle.dumps(source))  # as workers get it
    assert [int(copy[index].image[0, 0, 0]) for index in (2, 0, 4, 1)] == [200, 20, 7, 90]


def test_without_classes_it_says_what_was_looked_for(mixed: Path) -> None:
    (mixed / "a" / "stack.tif").rename(mixed / "stack.tif")
    files, pages = (open_source(str(mixed), 1, options=ReadOptions(pages=pages)) for pages in ("first", "all"))
    assert pages.no_labels == files.no_labels != ""


def test_pages_of_files_whose_names_do_not_say_what_they_are(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = pa.table({"image": [stack(), stack(), png(1)]})
    write(tmp_path / "0.parquet", rows, 2)
    save_to_disk(tmp_path / "set", rows)
    (tmp_path / "stack").write_bytes(stack())
    (tmp_path / "list.txt").write_text("stack\n")
    for data, pages, unread in (("0.parquet", 7, 2), ("set", 7, 4), ("list.txt", 3, 2)):
        first, every = (open_source(str(tmp_path / data), 1, options=ReadOptions(pages=p)) for p in ("first", "all"))
        assert (unread_pages(first), len(every)) == (unread, pages), data
        assert [int(every[index].image[0, 0, 0]) for index in range(3)] == list(SHADES)


def test_unread_pages_are_counted(mixed: Path) -> None:
    assert unread_pages(Folder(mixed, 1)) == 2
