"""Wrong images, run folders and checkpoints: an exit code and a line that says what, why and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from smalti.cli import main
from tests.small_runs import (
    CPU,
    DEMO_FLAGS,
    flat_pictures,
    newest_checkpoint,
    pictures,
    pretrain,
    train_tokenizer,
)

Verb = Callable[[Path, Path], int]
"""Run a verb on DATA; the second path is the run folder to write."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos") / "photos", per_class=8)


@pytest.fixture(scope="module")
def tokenizer(photos: Path) -> Path:
    out = photos.parent / "tokenizer"
    assert train_tokenizer(photos, out, 2) == 0
    return out


@pytest.fixture(scope="module")
def backbone(photos: Path, tokenizer: Path) -> Path:
    out = photos.parent / "backbone"
    assert pretrain(photos, tokenizer, out, 2) == 0
    return out


@pytest.fixture(params=["train-tokenizer", "demo", "evaluate"])
def verb(request: pytest.FixtureRequest, tokenizer: Path) -> Verb:
    """Every verb that reads a folder of images."""
    verbs: dict[str, Verb] = {
        "train-tokenizer": lambda data, out: train_tokenizer(data, out),
        "demo": lambda data, out: main(["demo", "--data", str(data), "--out", str(out), *DEMO_FLAGS]),
        "evaluate": lambda data, out: main(["evaluate", str(tokenizer), str(data), *CPU]),
    }
    return verbs[str(request.param)]


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[[int, int], str]:
    """Check the exit code and return the error, which is the last line and has no traceback."""

    def of(code: int, expected: int) -> str:
        lines = capsys.readouterr().err.splitlines()
        assert code == expected, lines
        assert [line.startswith("error: ") for line in lines].count(True) == 1
        assert "Traceback" not in "".join(lines)
        return lines[-1].removeprefix("error: ")

    return of


Failure = Callable[[int, int], str]


def fill(folder: Path, count: int, suffix: str) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}{suffix}").write_text("not a picture")
    return folder


def test_a_missing_folder(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    line = failure(verb(tmp_path / "nowhere", tmp_path / "run"), 3)
    assert line.startswith(f"no folder {tmp_path}/nowhere; it does not exist; check ")


def test_an_empty_folder(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    (tmp_path / "images").mkdir()
    line = failure(verb(tmp_path / "images", tmp_path / "run"), 3)
    assert line.startswith(f"no images in {tmp_path}/images; no file there has an image's extension; ")


def test_a_folder_of_texts(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    line = failure(verb(fill(tmp_path / "images", 3, ".txt"), tmp_path / "run"), 3)
    assert line.startswith(f"no images in {tmp_path}/images; no file there has an image's extension; ")


def test_a_folder_of_texts_that_are_called_pictures(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    line = failure(verb(fill(tmp_path / "images", 3, ".jpg"), tmp_path / "run"), 3)
    assert line.startswith(f"3 of 3 images cannot be read, first {tmp_path}/images/0.jpg; not an image in a format")
    assert "; remove them" in line


def test_a_file_in_place_of_a_folder(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    line = failure(verb(tmp_path / "one.png", tmp_path / "run"), 3)
    assert line == f"{tmp_path}/one.png is a file; DATA is a folder of images; give the folder it lies in"


def test_a_folder_that_cannot_be_listed(
    verb: Verb, photos: Path, tmp_path: Path, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(photos / "across"))

    monkeypatch.setattr("smalti.data.datasets.folder.walk", refuse)
    assert failure(verb(photos, tmp_path / "run"), 3) == f"cannot list {photos}/across; Permission denied"


def test_pictures_of_one_colour(tmp_path: Path, failure: Failure) -> None:
    (tmp_path / "images").mkdir()
    for grey in range(0, 80, 10):
        Image.new("L", (24, 24), grey).save(tmp_path / "images" / f"{grey:02d}.png")
    code = train_tokenizer(tmp_path / "images", tmp_path / "run", 2)
    assert failure(code, 3) == ("every patch of the images has a single colour; train on images that show something")


def test_a_single_picture(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    line = failure(verb(flat_pictures(tmp_path / "images", 1), tmp_path / "run"), 3)
    assert line == "only 1 readable image; training and measuring need at least 2"


def test_too_many_unreadable_pictures(verb: Verb, tmp_path: Path, failure: Failure) -> None:
    images = flat_pictures(tmp_path / "images", 8)
    for name in ("01.png", "03.png"):
        (images / name).write_bytes((images / name).read_bytes()[:200])
    line = failure(verb(images, tmp_path / "run"), 3)
    assert line.startswith(f"2 of 8 images cannot be read, first {images}/01.png; ")
    assert "; remove them" in line


def test_one_unreadable_picture_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = flat_pictures(tmp_path / "images", 8), tmp_path / "run"
    (images / "03.png").write_text("no image")
    assert train_tokenizer(images, out, 1) == 0
    reason = "not an image in a format smalti knows"
    listed = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert listed == [{"path": f"{images}/03.png", "reason": reason}]
    said = f"left out: 1 of 8 images cannot be read, first {images}/03.png ({reason}); listed in {out}/bad_files.jsonl"
    assert said in capsys.readouterr().err.splitlines()


def test_a_command_that_failed_on_its_images_can_be_repeated_into_the_same_folder(
    photos: Path, tmp_path: Path, failure: Failure
) -> None:
    out = tmp_path / "run"
    failure(train_tokenizer(tmp_path / "nowhere", out), 3)
    assert not out.exists()
    failure(train_tokenizer(fill(tmp_path / "images", 3, ".jpg"), out), 3)
    assert [path.name for path in out.iterdir()] == ["bad_files.jsonl"]
    assert train_tokenizer(photos, out, 1) == 0


@pytest.mark.parametrize("verb_name", ["train-tokenizer", "pretrain", "demo"])
def test_a_run_overwrites_nothing(
    verb_name: str, photos: Path, tokenizer: Path, tmp_path: Path, failure: Failure
) -> None:
    """J07."""
    (tmp_path / "diary.txt").write_text("mine")
    code = {
        "train-tokenizer": lambda: train_tokenizer(photos, tmp_path),
        "pretrain": lambda: pretrain(photos, tokenizer, tmp_path),
        "demo": lambda: main(["demo", "--data", str(photos), "--out", str(tmp_path), *DEMO_FLAGS]),
    }[verb_name]()
    line = failure(code, 2)
    assert line == f"{tmp_path} is not empty; a run never overwrites; choose another --out"
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_a_run_does_not_overwrite_another_run(photos: Path, tokenizer: Path, failure: Failure) -> None:
    before = (tokenizer / "config.json").read_bytes()
    assert failure(train_tokenizer(photos, tokenizer, 3), 2) == (
        f"{tokenizer} is not empty; a run never overwrites; go on with --resume {tokenizer}, or choose another --out"
    )
    assert (tokenizer / "config.json").read_bytes() == before


@pytest.mark.parametrize("verb_name", ["train-tokenizer", "demo"])
def test_a_run_folder_below_a_file(verb_name: str, photos: Path, tmp_path: Path, failure: Failure) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    code = {
        "train-tokenizer": lambda: train_tokenizer(photos, out),
        "demo": lambda: main(["demo", "--data", str(photos), "--out", str(out), *DEMO_FLAGS]),
    }[verb_name]()
    cause = f"{tmp_path}/file is a file" if verb_name == "demo" else "Not a directory"
    assert failure(code, 6) in (f"cannot write {out}; {cause}", f"cannot write into {out}; {cause}")


def test_no_tokenizer(photos: Path, tmp_path: Path, failure: Failure) -> None:
    line = failure(pretrain(photos, "", tmp_path / "run"), 2)
    assert line.startswith("no tokenizer given; give --tokenizer RUN")
    assert line.endswith("or use --target pixels")
    line = failure(pretrain(photos, tmp_path / "nowhere", tmp_path / "run"), 4)
    assert line.startswith(f"{tmp_path}/nowhere is no run folder; no readable config.json there; ")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_images_as_tokenizer(photos: Path, tmp_path: Path, failure: Failure) -> None:
    assert failure(pretrain(photos, photos, tmp_path / "run"), 4).startswith(f"{photos} is no run folder; ")


def test_a_backbone_as_tokenizer(photos: Path, backbone: Path, tmp_path: Path, failure: Failure) -> None:
    line = failure(pretrain(photos, backbone, tmp_path / "run"), 2)
    assert line == f"{backbone} is a run of pretrain; a run of train-tokenizer is needed here"


def test_other_channels_than_the_tokenizer_has(photos: Path, tokenizer: Path, tmp_path: Path, failure: Failure) -> None:
    grey = ["--data.channels", "1"]
    line = failure(pretrain(photos, tokenizer, tmp_path / "run", 2, *grey), 2)
    assert line == "data.channels 1 and backbone.in_chans 3 differ; use --backbone.in-chans 1"
    line = failure(pretrain(photos, tokenizer, tmp_path / "run", 2, *grey, "--backbone.in-chans", "1"), 2)
    assert line == (
        "the tokenizer reads 3 channels and data.channels is 1; use --data.channels and --backbone.in-chans 3"
    )


def test_resuming_what_is_no_run(tmp_path: Path, tokenizer: Path, failure: Failure) -> None:
    assert failure(main(["train-tokenizer", "--resume", str(tmp_path)]), 4).startswith(f"{tmp_path} is no run folder; ")
    assert "is a run of train-tokenizer; a run of pretrain is needed" in failure(
        main(["pretrain", "--resume", str(tokenizer)]), 2
    )


def test_evaluating_what_is_no_run(photos: Path, tmp_path: Path, failure: Failure) -> None:
    line = failure(main(["evaluate", str(tmp_path), str(photos), *CPU]), 4)
    assert line.startswith(f"{tmp_path} is no run folder; ")


@pytest.mark.parametrize("verb_name", ["evaluate", "predict", "embed", "show"])
def test_a_model_after_the_images(
    verb_name: str, photos: Path, backbone: Path, tmp_path: Path, failure: Failure
) -> None:
    out = [] if verb_name == "evaluate" else ["--out", str(tmp_path / {"show": "a.html"}.get(verb_name, "a.npy"))]
    out = ["--out", str(tmp_path / "a.csv")] if verb_name == "predict" else out
    line = failure(main([verb_name, str(photos), str(backbone), *out, "--device", "cpu"]), 2)
    assert line == f"{backbone} is a model, and {photos} is none; give the model first, then the images"


@pytest.mark.parametrize("target", ["timm", "huggingface", "unilm"])
def test_a_tokenizer_for_a_format_of_backbones(target: str, tokenizer: Path, tmp_path: Path, failure: Failure) -> None:
    """Whether the library of the format is installed is not asked first."""
    line = failure(main(["export", str(tokenizer), "--to", target, "--out", str(tmp_path / "out")]), 2)
    assert line == "a tokenizer has no backbone; export it --to bundle, onnx or torch-export"


def test_a_pattern_for_images(photos: Path, tokenizer: Path, failure: Failure) -> None:
    line = failure(main(["evaluate", str(tokenizer), f"{photos}/*.jpg", *CPU]), 3)
    assert line.startswith(f"no folder {photos}/*.jpg; patterns are not expanded here; give the folder of the images")


def test_images_that_are_kept_smaller_than_the_network_reads_them(
    photos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(photos, tokenizer, tmp_path / "run", 1, "--data.side", "8") == 0
    said = "images are kept at 8 x 8 pixels (--data.side) and enlarged to 16 x 16; --backbone.img-size 8 8 reads"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "MANIFEST.json"])
def test_a_flipped_byte_in_a_checkpoint_is_found(name: str, photos: Path, tmp_path: Path, failure: Failure) -> None:
    run = tmp_path / "run"
    assert train_tokenizer(photos, run, 1) == 0
    damaged = newest_checkpoint(run) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    for command in (["evaluate", str(run), str(photos), *CPU], ["train-tokenizer", "--resume", str(run)]):
        line = failure(main(command), 4)
        assert line.startswith(f"no usable checkpoint in {run}; damaged: step-00000001 (")


def test_a_damaged_newest_checkpoint_leaves_the_one_before(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_tokenizer(photos, run, 2, "--plan.save-every", "1") == 0
    (newest_checkpoint(run) / "model.safetensors").unlink()
    assert main(["evaluate", str(run), str(photos), *CPU]) == 0


def test_a_damaged_configuration(photos: Path, tmp_path: Path, failure: Failure) -> None:
    (tmp_path / "config.json").write_text('{"smalti": "0.1.0", "config": [1, 2]}')
    line = failure(main(["evaluate", str(tmp_path), str(photos), *CPU]), 4)
    assert line == f"{tmp_path}/config.json is damaged; config is not an object"


def test_a_report_of_what_is_no_run(tmp_path: Path, failure: Failure) -> None:
    assert failure(main(["report", str(tmp_path)]), 4).startswith(f"{tmp_path} is no run folder; ")


def test_a_budget_that_is_no_time(failure: Failure) -> None:
    assert failure(main(["demo", "--budget", "a while"]), 2) == "a budget of 'a while'; use 90s or 10m"
