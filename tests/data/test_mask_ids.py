"""Which values of masks are classes, palettes of label tools, and masks of photographs that EXIF turns."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.label_maps import MaskReading, Numbering, open_pairs, read_mask
from smalti.data.mask_ids import Chosen, MaskTurn, choose_ids, describe_ids, voc_colours
from smalti.functional.metrics import VOID

ORIENTATION = 0x0112


def counts_of(**shares: int) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for name, count in shares.items():
        counts[int(name[1:])] = count
    return counts


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        (counts_of(_0=90, _255=10), Chosen((0, 255), "refuse")),
        (counts_of(_0=90, _128=10), Chosen((0, 128), "refuse")),
        (counts_of(_0=50, _128=30, _255=20), Chosen((0, 128, 255), "refuse")),
        (counts_of(_0=900, _64=2, _128=1, _191=2, _255=95), Chosen((0, 255), "nearest")),
        (counts_of(_0=900, _60=1, _128=500, _255=400), Chosen((0, 128, 255), "void")),
        (counts_of(_0=90, _1=9, _255=1), Chosen((0, 1), "refuse")),  # 255 is void, as of Oxford's pets
        (counts_of(_1=90, _2=9, _3=1), Chosen((1, 2, 3), "refuse")),
        (counts_of(_0=9999, _1=30, _2=1, _255=9), Chosen((0, 1, 2), "refuse")),  # a rare class of a whole range
    ],
)
def test_auto_chooses(counts: np.ndarray, chosen: Chosen) -> None:
    assert choose_ids(counts, 255) == chosen


def test_auto_refuses_masks_of_one_value() -> None:
    with pytest.raises(DataError, match="all of their pixels are 0"):
        choose_ids(counts_of(_0=5), 255)


def test_values_are_listed_with_their_shares() -> None:
    counts = counts_of(_0=900, _64=2, _128=1, _191=2, _255=95)
    assert describe_ids(counts, choose_ids(counts, 255)) == (
        "values in the masks: 0 90.00%, 64 0.20%, 128 0.10%, 191 0.20%, 255 9.50%; classes are 0 255; others count as"
        " the nearest (another choice: --task.ids)"
    )


def test_listed_ids_are_numbered_in_their_order() -> None:
    ids = np.array([[0, 100, 128, 255, 7]], np.uint8)
    assert Numbering(7, 2, Chosen((255, 0), "nearest"))(ids).tolist() == [[1, 1, 0, 0, VOID]]
    assert Numbering(7, 2, Chosen((255, 0), "void"))(ids).tolist() == [[1, VOID, VOID, 0, VOID]]
    assert Numbering(255, 2, Chosen((0, 255), "refuse"))(ids)[0, [0, 3]].tolist() == [0, 1], "no void then"
    with pytest.raises(DataError, match=r"has the id 100; --task.ids has 0 255"):
        Numbering(7, 2, Chosen((0, 255), "refuse")).require(100, "mask.png")


def test_the_palette_is_that_of_voc() -> None:
    named = {1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: tuple(voc_colours()[index].tolist()) for index in named} == named


def with_palette(path: Path, ids: np.ndarray, colours: np.ndarray) -> None:
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(colours.astype(np.uint8).tobytes())
    picture.save(path)


def test_a_palette_of_a_label_tool_is_read_by_index(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2], [15, 20, 255]], np.uint8)
    with_palette(tmp_path / "voc.png", ids, voc_colours())
    assert np.array_equal(read_mask(tmp_path / "voc.png", (2, 3)).ids, ids)
    with_palette(tmp_path / "own.png", ids, voc_colours()[::-1])
    with pytest.raises(DataError, match=r"it has a palette; .*--task.ids auto"):
        read_mask(tmp_path / "own.png", (2, 3))
    assert np.array_equal(read_mask(tmp_path / "own.png", (2, 3), reading=MaskReading(listed=True)).ids, ids)


def test_palettes_that_differ_are_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    ids = np.array([[0, 1, 2]], np.uint8)
    for number, colours in enumerate((voc_colours(), voc_colours()[[0, 2, 1, *range(3, 256)]])):
        Image.new("RGB", (3, 1)).save(tmp_path / "images" / f"{number}.png")
        with_palette(tmp_path / "masks" / f"{number}.png", ids, colours)
    pairs = open_pairs(tmp_path, "images", "masks", 3, "inside", None, reading=MaskReading(listed=True))
    with pytest.raises(DataError, match=r"id 1 is the colour .* in one mask and"):
        pairs.present(Log())


def test_masks_of_one_bit_are_two_ids_where_ids_are_listed(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", (1, 2), reading=MaskReading(listed=True)).ids.tolist() == [[1, 0]]
    with pytest.raises(DataError, match="it has 1 bits a pixel"):
        read_mask(tmp_path / "a.png", (1, 2))


def turned_pair(root: Path, turn: int, size: tuple[int, int], mask_as: MaskTurn) -> np.ndarray:
    """A photograph that its EXIF tag turns, red in one corner, with a mask of that corner; the mask as it should be."""
    upright = np.zeros(size, np.uint8)
    upright[: size[0] // 2, : size[1] // 2] = 1
    undo = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, 1), 8: lambda a: np.rot90(a, -1)}[turn]
    stored = np.ascontiguousarray(undo(upright))
    for name in ("images", "masks"):
        (root / name).mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    pixels = np.stack([stored * 255, 0 * stored, 0 * stored], axis=-1)
    Image.fromarray(pixels).save(root / "images" / "a.jpg", exif=exif, quality=95, subsampling=0)
    Image.fromarray(upright if mask_as == "upright" else stored).save(root / "masks" / "a.png")
    return upright


@pytest.mark.parametrize("turn", [6, 8])
@pytest.mark.parametrize("mask_as", ["stored", "upright"])
def test_a_mask_follows_the_turn_of_its_image_where_sizes_say_so(tmp_path: Path, turn: int, mask_as: MaskTurn) -> None:
    expected = turned_pair(tmp_path, turn, (16, 24), mask_as)
    sample = open_pairs(tmp_path, "images", "masks", 3, "inside", None)[0]
    assert sample.label_map is not None
    assert np.array_equal(sample.label_map, expected)
    assert np.array_equal(sample.image[..., 0] > 128, expected == 1)


@pytest.mark.parametrize(("turn", "size"), [(3, (16, 24)), (6, (16, 16))])
@pytest.mark.parametrize("mask_as", ["stored", "upright"])
def test_a_turn_that_sizes_do_not_show_is_named_and_can_be_said(
    tmp_path: Path, turn: int, size: tuple[int, int], mask_as: MaskTurn
) -> None:
    expected = turned_pair(tmp_path, turn, size, mask_as)
    with pytest.raises(DataError, match=rf"the EXIF tag of its image turns that \({turn}\).*--task.mask-turn stored"):
        open_pairs(tmp_path, "images", "masks", 3, "inside", None)[0]
    said = open_pairs(tmp_path, "images", "masks", 3, "inside", None, reading=MaskReading(mask_as))[0]
    assert said.label_map is not None
    assert np.array_equal(said.label_map, expected)


def test_a_mask_of_another_size_than_a_turned_image_names_exif(tmp_path: Path) -> None:
    turned_pair(tmp_path, 6, (16, 24), "stored")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"its image 24x16, turned by its EXIF tag \(6\)"):
        open_pairs(tmp_path, "images", "masks", 3, "inside", None)[0]


def test_the_converter_of_the_documentation_makes_pairs_of_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, parts in (("a", 2), ("b", 1)):
        for kind in ("images", "masks"):
            (tmp_path / "nuclei" / name / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "nuclei" / name / "images" / f"{name}.png")
        for part in range(parts):
            one = np.zeros((8, 8), np.uint8)
            one[part * 4 : part * 4 + 2] = 255
            Image.fromarray(one).save(tmp_path / "nuclei" / name / "masks" / f"{part}.png")
    page = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "segmentation.md", "exec"), {})
    found = open_pairs(tmp_path / "converted", "images", "masks", 3, "inside", None).present(Log())
    assert found.counts[:2].tolist() == [128 - 48, 48]
