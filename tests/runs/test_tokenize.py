"""`smalti tokenize`: what it computes, that it fits the run it is for, and that it may be killed at any time."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.cli import main as smalti
from smalti.core.compute import Compute
from smalti.core.config import as_kind, to_json
from smalti.core.errors import DataError, OutputError, UsageError
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.data.tokens import TokenizedBatches
from smalti.models.vit import ViT
from smalti.recipes import tiny
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenize import Tokenize, main
from smalti.runs.tokenizers import load_tokenizer
from smalti.training.training_plan import Plan
from tests.faults.kills import Nursery
from tests.small_runs import CPU, PRETRAIN_FLAGS, pictures, pretrain, result, train_tokenizer, weights

VIT = ViT(img_size=(16, 16), patch_size=4, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("tokenize") / "photos", 200)


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    assert train_tokenizer(photos, photos.parent / "tokenizer", 2) == 0
    return photos.parent / "tokenizer"


@pytest.fixture
def run(photos: Path, tokenizer: Path, tmp_path: Path) -> Tokenize:
    """320 images in memory, 16 tokens each."""
    data = Data(str(photos), side=16, held_out=0.2)
    given = {"tokenizer": str(tokenizer), "out": str(tmp_path / "cache"), "device": "cpu", "precision": "fp32"}
    return Tokenize(data=data, backbone=VIT, plan=Plan(batch_size=16), **given)  # type: ignore[arg-type]


def live(run: Pretrain) -> np.ndarray[Any, Any]:
    """The ids of the first epoch as a run without a cache sees them, by image."""
    compute = Compute(torch.device("cpu"), torch.float32)
    tokens, images = load_tokenizer(run.tokenizer, compute), run.data.open(Log())
    loader = run.views(tokens).training_loader(images, run.data, len(images.train), compute.device)
    ids = TokenizedBatches(loader, tokens, compute)(0).ids
    assert ids is not None
    return ids.numpy()[np.argsort(loader.order(0).index)]


def stored(folder: Path, epoch: int = 0) -> np.ndarray[Any, Any]:
    """What a cache holds without the digests of its rows: 0 where there is nothing, else id + 1."""
    return np.fromfile(folder / f"ids-{epoch:05d}.u16", "<u2").reshape(-1, 16 + 4)[:, :16]


def test_the_ids_are_those_of_the_run(run: Tokenize, capsys: pytest.CaptureFixture[str]) -> None:
    found = main(run)
    assert {name: found[name] for name in ("images", "views", "tokens", "bytes", "already_there", "computed")} == {
        "images": 320,
        "views": 1,
        "tokens": 320 * 16,
        "bytes": 320 * (16 * 2 + 8),
        "already_there": 0,
        "computed": 320,
    }
    assert found["seconds"] > 0
    assert found["images_per_second"] > 0
    assert "320/320" in capsys.readouterr().err
    np.testing.assert_array_equal(stored(run.folder), live(run) + 1)
    assert run.folder.joinpath("ids-00000.u16").stat().st_size == found["bytes"]


def test_when_all_is_there_the_tokenizer_does_not_run(
    run: Tokenize, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(run)
    capsys.readouterr()
    monkeypatch.setattr("smalti.runs.tokenize.encode", None)
    found = main(run)
    assert (found["already_there"], found["computed"], found["images_per_second"]) == (320, 0, 0)
    assert capsys.readouterr().err.splitlines()[-1] == f"{run.folder}: 1 view of 320 images, all there"


@pytest.mark.parametrize(("num_views", "epochs", "files"), [(None, 3, 3), (2, None, 2), (3, 1, 1)])
def test_how_many_views(run: Tokenize, num_views: int | None, epochs: int | None, files: int) -> None:
    found = main(replace(run, num_views=num_views, epochs=epochs, data=replace(run.data, limit=40)))
    assert (found["views"], found["computed"]) == (files, 32 * files)
    assert len(list(run.folder.glob("ids-*"))) == files
    if files > 1:
        assert (stored(run.folder, 0) != stored(run.folder, 1)).any()


def test_more_epochs_than_views_are_refused(run: Tokenize) -> None:
    with pytest.raises(UsageError) as caught:
        replace(run, num_views=2, epochs=3)
    assert str(caught.value) == "3 epochs of 2 views; use --epochs 2 or less: later ones are the same again"
    with pytest.raises(UsageError, match=r"^epochs is 0; use at least 1$"):
        replace(run, epochs=0)


def test_without_a_folder(run: Tokenize) -> None:
    with pytest.raises(UsageError, match=r"^no folder for the visual tokens; use --out CACHE$"):
        main(replace(run, out=""))


def test_a_cache_of_another_run_is_refused(run: Tokenize) -> None:
    small = replace(run, data=replace(run.data, limit=40))
    main(small)
    with pytest.raises(DataError) as caught:
        main(replace(small, seed=4))
    assert str(caught.value) == (
        f"token cache {run.folder} does not fit this run; seed: there 0, here 4; delete it, or give another folder"
    )


def test_a_full_disk_ends_it(run: Tokenize, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(OutputError, match=r"^cannot write .*ids-00000.u16; No space left on device$"):
        main(run)


_KILLED = """
import json, os, signal, sys
from pathlib import Path
from smalti.core.config import from_json
from smalti.runs.tokenize import Tokenize, main

write, calls = os.pwrite, []

def killing(descriptor, data, offset):
    calls.append(offset)
    if len(calls) < 2:
        return write(descriptor, data, offset)
    write(descriptor, data[:41], offset)  # one row and half a number
    os.kill(os.getpid(), signal.SIGKILL)

os.pwrite = killing
main(from_json(Tokenize, json.loads(sys.argv[1])))
"""


@pytest.mark.processes
def test_killed_in_the_middle_of_a_row_it_goes_on_there(run: Tokenize, one: Nursery) -> None:
    assert one.killed_itself(_KILLED, json.dumps(to_json(run))), one.told()
    before = stored_rows(run.folder)
    assert before == 256 + 1
    found = main(run)
    assert (found["already_there"], found["computed"]) == (before, 320 - before)
    np.testing.assert_array_equal(stored(run.folder), live(run) + 1)


def stored_rows(folder: Path) -> int:
    """Whole rows in the first file, which may end anywhere."""
    data = (folder / "ids-00000.u16").read_bytes()
    return len(data) // 40


def test_streamed_images_one_of_which_cannot_be_read(tokenizer: Path, run: Tokenize, tmp_path: Path) -> None:
    """The ids of the image that is shown instead are not taken for its own; everything else is kept."""
    photos = pictures(tmp_path / "photos", 30)
    bad = photos / "across" / "07.png"
    bad.write_bytes(bad.read_bytes()[:90])
    data = replace(run.data, path=str(photos), memory="stream", num_workers=0, held_out=0.05, max_bad_fraction=0.1)
    small = replace(run, data=data)
    found = main(small)
    assert (found["images"], found["computed"], found["unreadable"]) == (57, 56, 1)
    assert json.loads((run.folder / "bad_files.jsonl").read_text())["path"] == str(bad)
    again = main(small)
    assert (again["already_there"], again["computed"], again["unreadable"]) == (56, 0, 1)
    ids, shown = stored(run.folder), live(small)
    there = ids.all(1)
    assert there.sum() == 56
    np.testing.assert_array_equal(ids[there], shown[there] + 1)


def test_pretraining_on_the_cache_is_pretraining_without(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the command line, with more epochs than were computed beforehand."""
    cache, limit = tmp_path / "cache", ["--data.limit", "40"]
    given = [*PRETRAIN_FLAGS, *limit, "--tokenizer", str(tokenizer)]
    assert smalti(["tokenize", str(photos), "--recipe", "tiny", *given, "--out", str(cache), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["computed"], printed["cache"]) == (32, str(cache))
    assert pretrain(photos, tokenizer, tmp_path / "live", 4, *limit) == 0
    assert pretrain(photos, tokenizer, tmp_path / "cached", 4, *limit, "--token-cache", str(cache)) == 0
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")
    assert result(tmp_path / "cached") == result(tmp_path / "live")
    assert stored(cache, 0).all()
    assert stored(cache, 1).all()  # the run has added its second epoch


def test_cycled_views_change_training(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    limit = ["--data.limit", "40"]
    assert pretrain(photos, tokenizer, tmp_path / "new", 4, *limit) == 0
    assert pretrain(photos, tokenizer, tmp_path / "one", 4, *limit, "--num-views", "1") == 0
    assert weights(tmp_path / "one") != weights(tmp_path / "new")


def test_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smalti(["tokenize"]) == 2
    assert capsys.readouterr().err == "error: no images given; smalti tokenize DATA --tokenizer RUN --out CACHE\n"
    assert smalti(["tokenize", str(photos), "--tokenizer", str(tmp_path), *CPU, "--out", str(tmp_path / "cache")]) == 4
    assert "is no run folder" in capsys.readouterr().err
    assert smalti(["tokenize", str(photos), "--epoch", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown option '--epoch'; did you mean '--epochs'?")
    assert smalti(["tokenize", "--help"]) == 0
    assert "--epochs" in capsys.readouterr().out


def test_the_flags_are_those_of_pretrain() -> None:
    """So the views of a recipe are those of its pretraining run."""
    assert as_kind(tiny.pretrain(), Tokenize).crop == tiny.pretrain().crop
    assert as_kind(tiny.pretrain(), Tokenize).backbone == tiny.pretrain().backbone
