"""Twelve bits in files of sixteen, and TIFF stacks: what is said of them, and what `--data.window` and `.pages` do."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smalti
from smalti.cli import main
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.report.pictures import data_uri
from smalti.runs.serve import Serve, load_nearest, load_predictor
from tests.small_runs import CPU, FEWEST, PRETRAIN_FLAGS, finetune, picture, pretrain, train_tokenizer

PAGES = 3
WINDOW = ["--data.window", "auto", "--data.pages", "all"]


def cells(number: int, across: bool) -> Image.Image:
    """Stripes of values around 2000 of 65535."""
    grey = np.asarray(picture(number, across).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 12 + 100)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 files of 3 pages each."""
    root = tmp_path_factory.mktemp("microscope") / "cells"
    for across, name in ((True, "across"), (False, "down")):
        (root / name).mkdir(parents=True)
        for number in range(0, 12 * PAGES, PAGES):
            first, *others = (cells(number + page, across) for page in range(PAGES))
            first.save(root / name / f"{number:02d}.tif", save_all=True, append_images=others)
    return root


@pytest.fixture(scope="module")
def tokenizer(stacks: Path) -> Path:
    out = stacks.parent / "tokenizer"
    assert train_tokenizer(stacks, out, 2, *WINDOW) == 0
    return out


def config_of(run: Path) -> Any:
    return json.loads((run / "config.json").read_text())["config"]


def test_check_says_what_to_do(stacks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(stacks), "--json"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    values = result["values"]["uint16"]
    assert values["images"] == 24
    assert 100 <= values["low"] < 1000 < values["high"] <= 12 * 255 + 100
    assert result["pages"] == 24 * PAGES
    line = f"of what the files can hold; train with --data.window {values['low']:g} {values['high']:g}, or auto"
    assert line in printed
    assert "48 after the first of a TIFF are not read; train with --data.pages all" in printed


def test_check_with_window_and_pages_sees_what_training_would(stacks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(stacks), "--window", "auto", "--pages", "all", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["readable"] == result["pages"] == 24 * PAGES
    assert 0.2 < result["mean"][0] < 0.8


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four TIFFs of 12 bits in 16, and four PNGs of 8 bits."""
    for number in range(4):
        cells(number, True).save(tmp_path / f"{number}.tif")
        picture(number, True).save(tmp_path / f"{number}.png")
    return tmp_path


def test_images_of_8_bits_beside_deeper_ones_stay_as_they_are(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(mixed)]) == 0
    assert "a window that ends above 255 leaves images of 8 bits as they are" in capsys.readouterr().out
    images = Data(path=str(mixed), side=16, window="auto").measured(Log()).source(str(mixed))
    plain = Data(path=str(mixed), side=16).source(str(mixed))
    for position in range(len(images)):
        if images.name(position).endswith(".png"):
            np.testing.assert_array_equal(images[position].image, plain[position].image)
        else:
            assert images[position].image.max() > 200 > 20 > plain[position].image.max()


def test_floats_beside_8_bits_have_no_window(mixed: Path) -> None:
    for file in mixed.glob("*.tif"):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.float32) / 4096).save(file)
    with pytest.raises(DataError, match="no one value window fits these images; they have float32 and uint8 values"):
        Data(path=str(mixed), side=16, window="auto").measured(Log())


def test_training_without_a_window_says_how_little_of_the_range_is_used(
    stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tokenizer(stacks, tmp_path / "run", 1) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "of their range; --data.window auto makes it all of it" in said
    assert "further ones are not; --data.pages all" in said


def test_the_window_is_measured_once_and_kept_and_is_the_next_runs_too(
    stacks: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = config_of(tokenizer)["data"]["window"]
    assert 100 <= low < 1000 < high <= 12 * 255 + 100
    assert pretrain(stacks, tokenizer, tmp_path / "mim", 2) == 0
    assert config_of(tmp_path / "mim")["data"]["window"] == [low, high]
    assert finetune(stacks, tmp_path / "mim", tmp_path / "tuned", 1) == 0
    assert config_of(tmp_path / "tuned")["data"]["window"] == [low, high]
    assert main(["evaluate", str(tmp_path / "mim"), str(stacks), *FEWEST]) == 0
    assert main(["export", str(tmp_path / "mim"), "--to", "bundle", "--out", str(tmp_path / "bundle")]) == 0
    assert json.loads((tmp_path / "bundle" / "preprocessor.json").read_text())["window"] == [low, high]
    assert "value window" in (tmp_path / "bundle" / "README.md").read_text()
    file = next((stacks / "down").iterdir())
    bundle = smalti.load(str(tmp_path / "bundle"), device="cpu")
    assert isinstance(bundle, smalti.Network)
    [shown] = bundle.preprocess(str(file))
    assert shown.max() > 200
    capsys.readouterr()
    other = ["--data.window", "0", "4095"]
    assert pretrain(stacks, tokenizer, tmp_path / "other", 1, *other) == 2
    assert "leave --data.window out" in " ".join(capsys.readouterr().err.split())


def test_a_run_with_a_window_goes_on(stacks: Path, tokenizer: Path, tmp_path: Path) -> None:
    assert pretrain(stacks, tokenizer, tmp_path / "run", 2, *WINDOW, "--data.memory", "stream") == 0
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--plan.steps", "3"]) == 0


def test_embed_sees_the_window(stacks: Path, tokenizer: Path, tmp_path: Path) -> None:
    assert pretrain(stacks, tokenizer, tmp_path / "run", 1) == 0
    out = tmp_path / "features.npy"
    assert main(["embed", str(tmp_path / "run"), str(stacks), "--out", str(out), *CPU]) == 0
    network = smalti.load(str(tmp_path / "run"), device="cpu")
    assert isinstance(network, smalti.Network)
    files = sorted(str(path) for path in stacks.glob("*/*.tif"))
    expected = network.features(files).numpy()
    np.testing.assert_allclose(np.load(out), expected, atol=1e-4)


def test_serve_and_its_nearest_images_see_the_window(stacks: Path, tokenizer: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "features.npy"
    assert pretrain(stacks, tokenizer, run, 1) == 0
    assert main(["embed", str(run), str(stacks), "--out", str(out), *CPU]) == 0
    file, network = next((stacks / "down").iterdir()), smalti.load(str(run), device="cpu")
    assert isinstance(network, smalti.Network)
    predictor = load_predictor(str(run), network.compute)
    square = predictor.picture(base64.b64encode(file.read_bytes()).decode())
    np.testing.assert_array_equal(square, network.preprocess(str(file))[0].permute(1, 2, 0))
    np.testing.assert_array_equal(predictor.picture(data_uri(square)), square)  # the answer of /api/image, sent again
    nearest = load_nearest(Serve(str(run), features=str(out), data=str(stacks)), predictor)
    assert nearest.source[0].image.max() > 200


def test_the_page_of_search_shows_the_window(stacks: Path, tokenizer: Path, tmp_path: Path) -> None:
    run, out, page = tmp_path / "run", tmp_path / "features.npy", tmp_path / "page.html"
    assert pretrain(stacks, tokenizer, run, 1) == 0
    assert main(["embed", str(run), str(stacks), "--out", str(out), *CPU]) == 0
    search = ["search", str(out), str(next((stacks / "down").iterdir())), "--data", str(stacks), "--out", str(page)]
    assert main([*search, *CPU]) == 0
    drawn = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page.read_text())
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in drawn]
    assert pictures
    assert all(picture.max() > 200 for picture in pictures)


def test_prepared_images_have_the_window_in_them_once(stacks: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    flags = ["--encoding", "raw", "--channels", "1", "--window", "auto", "--pages", "all"]
    assert main(["prepare", str(stacks), "--out", str(shards), "--side", "16", *flags]) == 0
    straight = Data(str(stacks), channels=1, side=16, window="auto", pages="all").measured()
    prepared = Data(str(shards), channels=1, side=16).measured()
    assert prepared.window == straight.window
    images = prepared.load(Log())
    assert len(images.train) + len(images.held_out) == 24 * PAGES
    ours, theirs = images.train.images.float().mean(), straight.load(Log()).train.images.float().mean()
    assert abs(ours - theirs) < 3


@pytest.mark.parametrize("window", [["5"], ["7", "3"], ["0", "inf"], ["1", "2", "3", "4"]])
def test_no_window_is_refused_in_one_line(
    stacks: Path, tmp_path: Path, window: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*PRETRAIN_FLAGS, "--data", str(stacks), "--out", str(tmp_path / "run"), "--data.window", *window]
    assert main(["pretrain", "tiny", *flags]) == 2
    assert "use MIN MAX" in " ".join(capsys.readouterr().err.split())


def test_auto_refuses_shares_beside_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No window of the former leaves the latter as they are."""
    Image.fromarray(np.asarray(picture(0, True).convert("L"), np.float32) / 255).save(tmp_path / "a.tif")
    picture(0, True).convert("L").save(tmp_path / "b.png")
    assert train_tokenizer(tmp_path, tmp_path / "run", 1, *WINDOW) == 3
    assert "they have float32 and uint8 values" in " ".join(capsys.readouterr().err.split())
