"""`smalti masks`: figures, text and pictures say what the masks say."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smalti.cli import main
from smalti.core.config import from_json, to_json
from smalti.core.rng import Stream, fold
from smalti.functional.masking import Blockwise, Random, Rolled
from smalti.functional.published_masking import Algorithm1, Release
from smalti.runs import masks
from smalti.runs.masks import Masks, Variant
from smalti.runs.pretrain_config import Pretrain
from tests import oracles
from tests.report.reading import pictures_in


def audited(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    """What is printed before the JSON line, and that line."""
    assert main(["masks", *arguments.split(), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[:-1], json.loads(lines[-1])


@pytest.mark.parametrize(
    ("variant", "kind"),
    [("exact", Blockwise), ("rolled", Rolled), ("release", Release), ("algorithm1", Algorithm1), ("random", Random)],
)
def test_every_figure_is_that_of_the_masks_themselves(variant: Variant, kind: type) -> None:
    config = Masks(variant, grid=(5, 8), count=12, draws=5000, seed=3)
    drawn = kind(num_masked=12)(fold(3, np.arange(5000), Stream.MASK), (5, 8))
    masked, result = drawn.sum(axis=1), masks.main(config)
    sizes = [oracles.component_sizes(mask, (5, 8)) for mask in drawn[:1024]]
    assert config.masking == kind(num_masked=12)
    assert (result["variant"], result["grid"], result["draws"], result["requested"]) == (variant, [5, 8], 5000, 12)
    assert result["mean"] == pytest.approx(masked.mean())
    assert result["std"] == pytest.approx(masked.std())
    assert (result["min"], result["max"]) == (masked.min(), masked.max())
    assert result["share_exact"] == pytest.approx((masked == 12).mean())
    assert result["histogram"] == {int(n): pytest.approx((masked == n).mean()) for n in np.unique(masked)}
    np.testing.assert_allclose(result["coverage"], drawn.mean(axis=0).reshape(5, 8))
    assert result["pieces"] == pytest.approx(np.mean([len(of_mask) for of_mask in sizes]))
    flat = np.array([size for of_mask in sizes for size in of_mask])
    assert result["piece_sizes"] == {int(n): pytest.approx((flat == n).mean()) for n in np.unique(flat)}
    assert result["microseconds"] > 0


@pytest.mark.parametrize("kind", [Blockwise, Rolled, Release, Algorithm1, Random])
def test_a_run_folder_keeps_every_masking(kind: type) -> None:
    run = Pretrain(masking=kind(0.3, num_masked=5))
    assert from_json(Pretrain, json.loads(json.dumps(to_json(run)))) == run


def test_the_release_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    text, result = audited("--variant release --grid 14 14 --count 75 --draws 20000", capsys)
    assert result["mean"] == pytest.approx(74.47, abs=0.05)
    assert result["share_exact"] == result["histogram"]["75"] == pytest.approx(0.666, abs=0.01)
    assert text[-5] == "masking       release, 14 x 14 patches, 20000 masks"
    assert re.fullmatch(r"masked        74\.4\d patches \(38\.0 %\), deviation \d\.\d\d, 6\d to 75", text[-4])
    assert re.fullmatch(r"exactly 75    6\d\.\d %", text[-3])
    assert re.fullmatch(r"pieces        1\.\d\d a mask, of 1 to 75 patches", text[-2])
    assert re.fullmatch(r"cost          \d+\.\d\d microseconds a mask", text[-1])


def test_the_text_shows_masks_and_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    text, result = audited("--grid 3 5 --draws 50", capsys)
    assert "".join(text).isascii()
    drawn = Blockwise()(fold(0, np.arange(4), Stream.MASK), (3, 5)).reshape(4, 3, 5)
    for row, line in enumerate(text[:3]):
        assert line == "  ".join("".join("##" if masked else " ." for masked in mask[row]) for mask in drawn)
    assert text[4] == "share of masks that cover a patch, in %"
    assert [list(map(int, line.split())) for line in text[5:8]] == [
        [round(100 * share) for share in row] for row in result["coverage"]
    ]


@pytest.mark.parametrize("grid", ["1 2", "1 200", "256 1", "60 60"])
def test_any_grid_fits_the_terminal(grid: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, result = audited(f"--grid {grid} --draws 2 --variant rolled", capsys)
    height, width = map(int, grid.split())
    assert np.array(result["coverage"]).shape == (height, width)
    assert max(map(len, text)) <= max(96, 4 * width)


def test_as_a_picture_coverage_comes_first(tmp_path: Path) -> None:
    result = masks.main(Masks(grid=(7, 14), draws=30, out=str(tmp_path / "masks.png")))
    assert result["out"] == str(tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as picture:
        assert picture.size == (8 * (14 * 8 + 4) + 4, 3 * (7 * 8 + 4) + 4)
        grey = np.asarray(picture.convert("L"))
    share = grey[8:60:8, 8:116:8]
    np.testing.assert_allclose(share, 232 - 192 * np.array(result["coverage"]), atol=0.51)
    drawn = Blockwise()(fold(0, np.arange(1), Stream.MASK), (7, 14)).reshape(7, 14)
    assert np.array_equal(grey[8:60:8, 124:232:8] == 40, drawn)


def test_few_masks_make_a_small_picture(tmp_path: Path) -> None:
    masks.main(Masks(grid=(2, 2), draws=2, out=str(tmp_path / "masks.png")))
    with Image.open(tmp_path / "masks.png") as picture:
        assert picture.size == (3 * (112 + 4) + 4, 112 + 8)


def test_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "masks.html"
    text, result = audited(f"--variant algorithm1 --draws 100 --out {out}", capsys)
    page = out.read_text()
    assert text[-1] == f"written: {out}"
    assert result["out"] == str(out)
    assert [picture.shape for picture in pictures_in(page)] == [(14, 14)] * 24
    assert "<h1>algorithm1 masks</h1>" in page
    assert f"{result['min']} to {result['max']}" in page
    assert page.count("<svg") == 2, "the logo and a chart"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--grid 1 1", "nothing to mask in a grid of 1 x 1 patches; use at least two patches"),
        ("--grid 0 4", "a grid of 0x4 patches; use sides of 1 to 256"),
        ("--grid 300 4", "a grid of 300x4 patches; use sides of 1 to 256"),
        ("--count 196", "196 patches to mask in a grid of 14 x 14 patches; choose 1 to 195"),
        ("--count 0 --variant algorithm1", "0 patches to mask in a grid of 14 x 14 patches; choose 1 to 195"),
        ("--ratio 1.5", "a mask ratio of 1.5; choose one between 0 and 1"),
        ("--draws 0", "0 masks; draw at least 1"),
        ("--seed -1", "a seed of -1; use 0 to 2^63 - 1"),
        ("--out masks.gif", "cannot write 'masks.gif'; use a name in .html or .png"),
        (
            "--variant relaese",
            "invalid choice 'relaese' for argument '--variant'. Expected one of ('exact', 'rolled', ",
        ),
        ("--cuont 3", "unknown option '--cuont'; did you mean '--count'?"),
    ],
)
def test_what_is_refused(flags: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["masks", *flags.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["masks", "--draws", "5", "--out", str(tmp_path / "file" / "masks.png")]) == 6
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path}/file/masks.png; ")
