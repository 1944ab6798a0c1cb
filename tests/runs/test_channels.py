"""Both stages on images of five channels, and the verbs that look at them. Trainings of two steps: it takes seconds."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.cli import main
from smalti.data.datasets.open import open_source
from smalti.runs.plan import with_channels
from tests.small_runs import finetune, pretrain, train_tokenizer

CHANNELS = 5
FIVE = ("--data.channels", "5")


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten arrays of each of two classes, of values of 16 bits that use little of them."""
    place, rng = tmp_path_factory.mktemp("channels"), np.random.default_rng(0)
    for number in range(20):
        name = "forest" if number % 2 else "water"
        (place / "bands" / name).mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 900, (24, 20, CHANNELS)) * np.arange(1, 1 + CHANNELS)
        file = io.BytesIO()
        np.save(file, values.astype(np.uint16))
        (place / "bands" / name / f"{number}.npy").write_bytes(file.getvalue())
    return place


@pytest.fixture(scope="module")
def five(bands: Path) -> Path:
    window = ("--data.window", "auto")
    assert train_tokenizer(bands / "bands", bands / "tokenizer", 2, *FIVE, "--tokenizer.in-chans", "5", *window) == 0
    flags = (*FIVE, "--backbone.in-chans", "5", "--accept-tokenizer")
    assert pretrain(bands / "bands", bands / "tokenizer", bands / "beit", 2, *flags) == 0
    return bands


def test_check_says_how_many_channels_there_are_and_what_to_write(
    bands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(bands / "bands")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"channels +5 in 20 images; train with --data.channels 5 --tokenizer.in-chans 5 \(pretrain", said)
    assert re.search(r"modes +uint16 x 5 20\n", said)
    assert "train with --data.window auto" in said
    assert len(re.findall(r"0\.\d{4}", said.partition("mean")[2].partition("std")[0])) == CHANNELS


def test_one_line_says_what_is_wrong(bands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_tokenizer(bands / "bands", tmp_path / "a", 1) == 3
    said = capsys.readouterr().err
    assert "it has 5 channels, and 3 are wanted; train with --data.channels 5 and as many --tokenizer.in-chans" in said
    assert train_tokenizer(bands / "bands", tmp_path / "a", 1, *FIVE) == 2
    assert "data.channels 5 and tokenizer.in_chans 3 differ; use --tokenizer.in-chans 5" in capsys.readouterr().err


def test_a_tokenizer_of_other_channels_is_named_before_its_window(
    five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(five / "bands", five / "tokenizer", tmp_path / "run", 1) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "reads 5 channels and data.channels is 3; use --data.channels and --backbone.in-chans 5" in said


def test_the_next_command_reads_the_images_as_this_run(bands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*FIVE, "--data.group", "(\\d+)", "--data.follow-links", "all")
    assert train_tokenizer(bands / "bands", bands / "grouped", 1, *flags, "--tokenizer.in-chans", "5") == 0
    then = capsys.readouterr().err.splitlines()[-1]
    assert then.endswith(
        f"--tokenizer {bands}/grouped --data.channels 5 --backbone.in-chans 5 --data.follow-links all "
        "--data.group '(\\d+)' --out OUT"
    )


def test_both_stages_their_pictures_and_the_verbs_after_them(
    five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = str(five / "bands"), str(five / "beit")
    for number, channels in enumerate(([], ["--data.show-channels", "4", "2", "0"], ["--show-channels", "3"])):
        out = tmp_path / f"{number}.png"
        assert main(["show", run, images, "--count", "2", "--out", str(out), *channels, "--device", "cpu"]) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(3)]
    assert pictures[0].shape == pictures[1].shape
    assert not np.array_equal(pictures[0], pictures[1])
    first_row = pictures[2][40:250, :900]  # four pictures; the fifth, of entropy, has colours of its own
    assert (first_row == first_row[..., :1]).all()
    assert not (pictures[0][40:250, :900] == pictures[0][40:250, :900, :1]).all()
    assert main(["report", str(five / "tokenizer"), run]) == 0
    assert main(["embed", run, images, "--out", str(tmp_path / "f.npy"), "--device", "cpu", "--num-workers", "0"]) == 0
    page = str(tmp_path / "page.html")
    one = str(next((five / "bands" / "water").iterdir()))
    assert main(["search", str(tmp_path / "f.npy"), one, "--data", images, "--out", page, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["serve", run, "--device", "cpu"]) == 2
    assert "the page shows grey and RGB images, and" in capsys.readouterr().err
    flags = (*FIVE, "--backbone.in-chans", "5")
    assert finetune(five / "bands", five / "beit", tmp_path / "classes", 2, *flags) == 0
    words = ["predict", str(tmp_path / "classes"), images, "--device", "cpu", "--num-workers", "0"]
    assert main([*words, "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 21


def test_what_is_prepared_is_learned_from_as_the_files_are(five: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    words = ["prepare", str(five / "bands"), "--channels", "5", "--window", "auto", "--out", str(shards)]
    assert main(words) == 0
    flags = (
        *FIVE,
        "--backbone.in-chans",
        "5",
        "--accept-tokenizer",
        "--data.memory",
        "stream",
        "--data.num-workers",
        "0",
    )
    assert pretrain(shards, five / "tokenizer", tmp_path / "run", 2, *flags) == 0
    assert main(["check", str(shards)]) == 0
    assert open_source(str(shards), CHANNELS)[0].image.shape[2] == CHANNELS


def test_the_recipes_of_a_plan_are_told() -> None:
    from smalti.recipes import tiny
    from smalti.runs.dry_run import Stages
    from smalti.runs.plan import Candidate

    told = with_channels(Candidate(Stages(tiny.train_tokenizer(), tiny.pretrain()), finetune=tiny.finetune()), CHANNELS)
    assert told.finetune is not None
    runs = (*told.stages, told.finetune)
    assert [run.data.channels for run in runs] == [CHANNELS] * 3
    assert told.stages.tokenizer.tokenizer.in_chans == CHANNELS
    assert all(run.backbone.in_chans == CHANNELS for run in (told.stages.pretrain, told.finetune))
