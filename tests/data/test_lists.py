"""Lists as other programs and people write them: where their images lie, what their columns are called."""

from pathlib import Path

import numpy as np
import pytest

from smalti.core.errors import DataError
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.open import ReadOptions, open_source
from tests.data.tables import png

IMAGES = ("train/a/x 1.jpg", "train/b/\u00e9t\u00e9.jpg", "train/b/z.JPG")


def images(root: Path) -> Path:
    for value, name in enumerate(IMAGES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def opened(place: Path, content: str | bytes, root: str = "") -> ImageDataset:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_source(str(place), 1, options=ReadOptions(root=root))


def shown(source: ImageDataset) -> list[int]:
    return [int(source[n].image[0, 0, 0]) for n in range(len(source))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image_id,breed\nx 1,pug\n\u00e9t\u00e9,husky\nz,pug\n"),
        ("a.csv", "filename,label\ntrain\\a\\x 1.jpg,pug\ntrain\\b\\\u00e9t\u00e9.jpg,husky\ntrain\\b\\z.JPG,pug\n"),
        (
            "a.csv",
            "path;label\nD:\\me\\train\\a\\x 1.jpg;pug\nD:\\me\\train\\b\\\u00e9t\u00e9.jpg;husky\nD:\\z.jpg;pug\n",
        ),
        (
            "a.csv",
            "path|label\n/old/train/a/x 1.jpg|pug\n/old/train/b/\u00e9t\u00e9.jpg|husky\n/old/train/b/z.JPG|pug\n",
        ),
        ("a.csv", "path,label\n./x 1.png,pug\n\u00e9t\u00e9.png,husky\nz.png,pug\n"),
        ("a.csv", "path,label\nx 1.jpg,pug\n\u00e9t\u00e9.jpg,husky\nz.jpg,pug\n".encode("cp1252")),
        ("a.csv", "path,label\nx 1.jpg,pug\n\u00e9t\u00e9.jpg,husky\nz.jpg,pug\n".encode("utf-16")),
        ("a.csv", "path,label\nx 1.jpg,pug\n\u00e9t\u00e9.jpg,husky\nz.jpg,pug\n".encode("utf-16-le")),
        ("a.csv", "path,label\nx 1.jpg,pug\ne\u0301te\u0301.jpg,husky\nz.jpg,pug\n"),
        ("a.txt", "x 1.jpg,pug\n\u00e9t\u00e9.jpg;husky\nz.jpg  pug\n"),
        ("a.txt", "x 1.jpg\tpug\n\u00e9t\u00e9.jpg, husky\nz.jpg|pug\n"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_i04_i05_images_are_found_by_name_and_that_is_said(
    tmp_path: Path, name: str, content: str | bytes, beside: bool
) -> None:
    folder = images(tmp_path / "images")
    source = opened(tmp_path / name, content) if beside else opened(tmp_path / "x" / name, content, root=str(folder))
    assert shown(source) == [0, 1, 2]
    assert [source.classes[n] for n in source.all_labels()] == ["pug", "husky", "pug"]
    assert any("3 of 3 are found by name" in note for note in source.notes)


def test_i05_labels_behind_a_path_have_spaces_and_other_alphabets(tmp_path: Path) -> None:
    images(tmp_path)
    content = "train/a/x 1.jpg golden retriever\ntrain/b/z.JPG café\n".encode("cp1252")
    source = opened(tmp_path / "a.txt", content)
    assert source.classes == ("caf\u00e9", "golden retriever")
    assert source.notes == ()


def test_i04_ids_in_a_text_file(tmp_path: Path) -> None:
    for value in range(2):
        (tmp_path / f"00{value}.png").write_bytes(png(value))
    source = opened(tmp_path / "a.txt", "000 golden retriever\n001 pug\n")
    assert (shown(source), source.classes) == ([0, 1], ("golden retriever", "pug"))


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("id,breed", ("labels are taken from column 'breed'", "paths are taken from column 'id'")),
        ("file_name,class", ()),
        ("IMAGE_ID,Target", ("paths are taken from column 'IMAGE_ID'",)),
    ],
)
def test_i04_columns_are_guessed_and_said(tmp_path: Path, header: str, note: tuple[str, ...]) -> None:
    (tmp_path / "a").write_bytes(png(1))
    source = opened(tmp_path / "a.csv", f"{header}\n" + "a,x\na,y\n" * 2)
    assert (source.classes, source.notes) == (("x", "y"), note)


def test_i04_where_all_are_missing_the_remedies_are_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    message = (
        r"none of the 2 images of .*a\.csv is there, first 'p/q\.jpg'; looked for in .*, also with other extensions, "
        r"separators and encodings: 3 images there, such as train/a/x 1\.jpg; say in which .* --data\.root"
    )
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.csv", "path\np/q.jpg\nr.jpg\n", root=str(folder))
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        opened(tmp_path / "a.csv", "path\na.jpg\n", root=str(tmp_path / "nowhere"))


def test_of_files_of_one_name_that_of_the_same_folder_is_taken(tmp_path: Path) -> None:
    for value, folder in enumerate(("cat", "dog", "emu")):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / "1.png").write_bytes(png(value))
    source = opened(tmp_path / "a.csv", "path\n/old/dog/1.png\n/old/cat/1.png\n/old/fox/1.png\n")
    assert (shown(source.select(np.array([0, 1]))), source.key(2)) == ([1, 0], "/old/fox/1.png")
    assert "2 of 3 are found by name" in source.notes[0]


def test_links_of_a_list_do_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="none of the 1 images"):
        opened(tmp_path / "in" / "a.csv", "path\nc/b.png\n")


HOT = "Path,Sex,rust,scab,frog\n"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (["M,1,0,0", "F,0,1,0", "M,0,0,1"], ["rust", "scab", "frog"]),
        (["M,1,1,0", "F,0,0,0", "M,0,0,1"], ["rust|scab", "|", "frog"]),
        (["M,1.0,,0", "F,-1,1,0", "M,0,0,1"], ["rust|?scab", "?rust|scab", "frog"]),
        (["M,1,-1,-1", "F,,-1,1", "M,-1,1,-1"], ["rust", "frog", "scab"]),
        (["M,1,0,0", "F,,,", "M,0,1,0", "M,0,0,0"], ["rust", "", "scab", "|"]),
    ],
)
def test_i14_columns_of_0_and_1_are_several_labels(tmp_path: Path, rows: list[str], found: list[str]) -> None:
    for number in range(len(rows)):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    source = opened(tmp_path / "a.csv", HOT + "".join(f"{n}.png,{row}\n" for n, row in enumerate(rows)))
    names = [source.classes[n] if n >= 0 else "" for n in source.all_labels()]
    assert names == found
    assert "3 columns of 0 and 1 are labels: rust, scab, frog" in source.notes[0]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("path,width\na.png,5\nb.png,7\n", "the columns are path, width; labels are looked for in label, labels"),
        ("path,split\na.png,0\nb.png,1\na.png,0\nb.png,1\n", "the columns are path, split"),
        ("path,caption\na.png,one\nb.png,two\n", "the columns are path, caption"),
    ],
)
def test_what_was_looked_for_is_known_where_there_are_no_labels(tmp_path: Path, content: str, cause: str) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    source = opened(tmp_path / "a.csv", content)
    assert source.classes == ()
    assert cause in source.no_labels
