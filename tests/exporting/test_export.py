"""`smalti export` and `smalti info`: bundles are models like runs, and a failed export leaves nothing."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smalti.cli import main
from smalti.exporting import bundle, huggingface, timm, unilm
from smalti.runs import evaluate
from tests.exporting.networks import PAPER, backbone
from tests.small_runs import CPU, finetune, newest_checkpoint, pretrain

KINDS = {
    "tokenizer": "tokenizer",
    "beit": "masked image model",
    "crossed": "masked image model",
    "classes": "classifier",
    "scenes": "segmenter",
}


@pytest.fixture(scope="module")
def measured(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `smalti evaluate --json` prints of the pretraining run, which it leaves as it is."""
    copied = shutil.copytree(runs / "beit", tmp_path_factory.mktemp("measured") / "beit")
    config = evaluate.Evaluate(str(copied), str(runs / "photos"), device="cpu", precision="fp32", draws=1)
    return evaluate.main(config)


def export(model: Path, out: Path, *flags: str) -> int:
    return main(["export", str(model), "--out", str(out), *flags])


def json_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def error_of(code: int, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == code
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize("model", KINDS)
def test_a_bundle_is_the_model(model: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(runs / model, tmp_path / "bundle") == 0
    weights = load_file(tmp_path / "bundle" / "model.safetensors")
    best = runs / model / "best"
    ours = load_file(newest_checkpoint(best if best.exists() else runs / model) / "model.safetensors")
    assert weights.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in weights.items())
    found, run = (json_of("info", str(folder), capsys=capsys) for folder in (tmp_path / "bundle", runs / model))
    assert found["kind"] == KINDS[model]
    assert (found.pop("bundle"), run.pop("bundle")) == (True, False)
    assert found == run
    assert found["parameters"] > 0
    assert (found["tokenizer_sha256"] is not None) == (model in ("beit", "crossed"))


@pytest.mark.parametrize(
    ("model", "images"),
    [("tokenizer", "photos"), ("beit", "photos/across"), ("classes", "photos"), ("scenes", "scenery")],
)
def test_a_bundle_is_measured_as_its_run_and_exported_again(
    model: str, images: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / model, tmp_path / "once") == 0
    assert export(tmp_path / "once", tmp_path / "twice") == 0
    for name in ("model.safetensors", "config.json", "preprocessor.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    places = (runs / model, tmp_path / "once")
    flags = [str(runs / images), *CPU, "--draws", "1", "--poolings", "mean"]
    found = [json_of("evaluate", str(place), *flags, capsys=capsys) for place in places]
    assert found[0] == found[1]


def test_a_bundle_names_no_place_and_says_what_it_is(runs: Path, tmp_path: Path) -> None:
    assert export(runs / "classes", tmp_path / "bundle") == 0
    files = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert files == {
        *("README.md", "certificate.json", "classes.json", "config.json", "model.safetensors", "preprocessor.json"),
        "result.json",
    }
    for path in (tmp_path / "bundle").iterdir():
        assert str(runs).encode() not in path.read_bytes()
    card = (tmp_path / "bundle" / "README.md").read_text()
    for line in ("# classes", "A classifier, trained", "- steps: 2", "- train images: ", "16 x 16 pixels", "Licence"):
        assert line in card
    for target in ("timm", "huggingface", "onnx"):
        assert f"smalti export FOLDER --to {target} --out NEW" in card
    certificate = json.loads((tmp_path / "bundle" / "certificate.json").read_bytes())
    data = (tmp_path / "bundle" / "model.safetensors").read_bytes()
    assert certificate["sha256"]["model.safetensors"] == hashlib.sha256(data).hexdigest()
    assert certificate["differences"]["logits"]["absolute"] == 0


def test_a_cut_backbone_is_a_start(
    runs: Path, measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "beit", tmp_path / "cut", "--layer", "1") == 0
    assert export(runs / "classes", tmp_path / "alone", "--part", "backbone") == 0
    assert json_of("info", str(tmp_path / "cut"), capsys=capsys)["kind"] == "backbone"
    data, depth = runs / "photos", ["--backbone.depth", "1"]
    found = json_of("evaluate", str(tmp_path / "cut"), str(data), *CPU, "--draws", "1", "--no-baselines", capsys=capsys)
    first = {name: value for name, value in measured["validation"].items() if name.startswith("1 ")}
    assert found["validation"] == pytest.approx(first)
    assert finetune(data, tmp_path / "cut", tmp_path / "run", 2, *depth) == 0
    assert finetune(data, tmp_path / "alone", tmp_path / "other", 2) == 0
    flags = [*depth, "--accept-tokenizer", "--init-from", str(tmp_path / "cut")]
    assert pretrain(data, runs / "tokenizer", tmp_path / "further", 2, *flags) == 0
    assert "is a backbone alone" in error_of(
        2, "show", str(tmp_path / "cut"), str(data / "across" / "00.png"), capsys=capsys
    )


def test_what_a_bundle_is_not(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(runs / "beit", tmp_path / "bundle") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    for arguments in (["pretrain", "--resume", str(tmp_path / "bundle")], ["report", str(tmp_path / "bundle")]):
        assert "is a bundle; it has weights, but no state" in error_of(2, *arguments, capsys=capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()} == before


@pytest.mark.parametrize("damage", ["truncated", "other", "gone"])
def test_a_damaged_bundle_is_refused(
    damage: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "beit", tmp_path / "bundle") == 0
    path = tmp_path / "bundle" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(data if damage == "other" else data[:-9])
    message = error_of(4, "info", str(tmp_path / "bundle"), capsys=capsys)
    assert "model.safetensors is damaged" in message
    assert "export the model again" in message


def test_the_evaluation_comes_along(
    runs: Path, measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "measured.json").write_text(f"a table\n{json.dumps(measured)}\n")
    assert export(runs / "beit", tmp_path / "bundle", "--evaluation", str(tmp_path / "measured.json")) == 0
    preprocessor = json.loads((tmp_path / "bundle" / "preprocessor.json").read_bytes())
    assert (preprocessor["best_layer"], preprocessor["best_pooling"]) == (measured["layer"], measured["pooling"])
    assert f"| this model | {measured['knn']:.1%}" in (tmp_path / "bundle" / "README.md").read_text()
    again = json_of("info", str(tmp_path / "bundle"), capsys=capsys)["evaluation"]
    assert again["pretrained"]["linear"] == measured["linear"]
    (tmp_path / "measured.json").write_text("{}")
    message = error_of(
        *(3, "export", str(runs / "beit"), "--out", str(tmp_path / "other")),
        *("--evaluation", str(tmp_path / "measured.json")),
        capsys=capsys,
    )
    assert "no evaluation of a backbone" in message


def test_the_last_evaluation_that_is_kept_in_a_run_comes_along(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the better of its untrained networks; results without probes, and damaged ones, do not count."""
    shutil.copytree(runs / "beit", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    (tmp_path / "run" / "evaluations").mkdir()
    row = {"linear": 0.8, "knn": 0.7, "layer": 2, "pooling": "mean", "knn_layer": 1, "knn_pooling": "cls"}
    starts = {"random, wide": row | {"linear": 0.5, "knn": 0.6}, "random, uniform": row | {"linear": 0.55, "knn": 0.4}}
    kept = {
        "old": {"linear": 0.1},
        "new": row | {"baselines": starts | {"raw pixels": row}},
        "loss": {"loss_nats": 1.0},
    }
    for number, (name, result) in enumerate(kept.items()):
        path = tmp_path / "run" / "evaluations" / f"{name}.json"
        path.write_text(json.dumps({"data": name, "test": "", "result": result}))
        os.utime(path, (number, number))
    (tmp_path / "run" / "evaluations" / "damaged.json").write_text("{")
    found = json_of("info", str(tmp_path / "run"), capsys=capsys)["evaluation"]
    assert (found["pretrained"]["linear"], found["random"]) == (0.8, {"linear": 0.55, "knn": 0.6})
    assert export(tmp_path / "run", tmp_path / "bundle") == 0
    assert "| the same network without training | 60.0% | 55.0% |" in (tmp_path / "bundle" / "README.md").read_text()


def test_a_demo_has_its_evaluation_beside_random_initialisation(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "beit", tmp_path / "demo" / "pretrain")
    row = {"linear": 0.8, "knn": 0.7, "layer": 2, "pooling": "mean", "validation": {}}
    probe = {"pretrained": row, "random": {"linear": 0.6, "knn": 0.5, "linear_few": 0.1}}
    (tmp_path / "demo" / "result.json").write_text(json.dumps({"probe": probe}))
    assert export(tmp_path / "demo" / "pretrain", tmp_path / "bundle") == 0
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| this model | 70.0% | 80.0% |" in card
    assert "| the same network without training | 50.0% | 60.0% |" in card
    assert "The best layer is block 2 (mean)" in card


def test_an_export_that_computes_something_else_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = unilm._again

    def wrong(*arguments: Any) -> Any:
        network: Any = whole(*arguments)
        network.head.bias.data[0] += 1
        return network

    monkeypatch.setattr(unilm, "_again", wrong)
    message = error_of(
        *(9, "export", str(runs / "beit"), "--to", "unilm", "--out", str(tmp_path / "out")), capsys=capsys
    )
    assert message.startswith("error: what was written computes other logits than the model; they differ by")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write_bundle", full)
    message = error_of(6, "export", str(runs / "beit"), "--out", str(tmp_path / "out"), capsys=capsys)
    assert "No space left on device" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", [timm, huggingface, unilm])
def test_c13_others_may_read_an_export_as_far_as_the_user_lets_them(target: Any, tmp_path: Path) -> None:
    """Left to itself, safetensors makes files of mode 0600."""
    before = os.umask(0o022)
    try:
        target.write(backbone(PAPER), tmp_path)
    finally:
        os.umask(before)
    assert "model.safetensors" in os.listdir(tmp_path)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        os.listdir(tmp_path), 0o644
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "3"], "layer 3; the backbone has 2 blocks, counted from 1"),
        (["--layer", "0"], "layer 0; the backbone has 2 blocks, counted from 1"),
        (["--layer", "1", "--part", "whole"], "a layer, and the whole model; leave one of them out"),
        (["--to", "torch-export", "--part", "whole"], "a masked image model is no function of images alone"),
        (["--to", "tensorflow"], "tensorflow"),
    ],
)
def test_what_is_refused(
    flags: list[str], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert message in error_of(2, "export", str(runs / "beit"), *out, *flags, capsys=capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note").write_text("mine")
    message = error_of(2, "export", str(runs / "beit"), "--out", str(tmp_path), capsys=capsys)
    assert "an export never overwrites" in message
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_parts_without_a_library_for_the_released_code(runs: Path, tmp_path: Path) -> None:
    """And from a bundle as from a run."""
    assert export(runs / "beit", tmp_path / "bundle") == 0
    for number, model in enumerate((runs / "beit", tmp_path / "bundle")):
        assert export(model, tmp_path / f"out{number}", "--to", "unilm") == 0
    files = [(tmp_path / f"out{number}" / "model.safetensors").read_bytes() for number in range(2)]
    assert files[0] == files[1]
    assert "lm_head.weight" in load_file(tmp_path / "out0" / "model.safetensors")


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 200_000, '{"pretrained": {"linear": "x"}}', '{"pretrained": []}'])
def test_an_absurd_evaluation_in_a_bundle_is_none(
    text: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "beit", tmp_path / "bundle") == 0
    (tmp_path / "bundle" / "evaluation.json").write_text(text)
    assert json_of("info", str(tmp_path / "bundle"), capsys=capsys)["evaluation"] is None


def test_an_absurd_result_in_a_bundle_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(runs / "beit", tmp_path / "bundle") == 0
    (tmp_path / "bundle" / "result.json").write_text('{"train_images": "many"}')
    assert main(["info", str(tmp_path / "bundle")]) == 4
    assert "a number of images is no number" in capsys.readouterr().err
