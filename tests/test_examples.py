"""Every example runs."""

import json
import runpy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import smalti
from smalti.cli import main
from smalti.core.contracts import Batch, BatchWrapper
from smalti.recipes import tiny
from tests.small_runs import PRETRAIN_FLAGS, TOKENIZER_FLAGS, flat_pictures, picture, pictures, result
from tests.test_documentation import blocks_of, commands_of, imports_of, resolves

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
WHOLE = pytest.mark.slow
"""Of whole runs; `make parity` has them all, with the packages that they use."""


@WHOLE
def test_pretraining_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = flat_pictures(tmp_path / "photos", 70)
    example = runpy.run_path(str(EXAMPLES / "pretrain_from_folder.py"))
    example["main"]([str(photos), "--out", str(tmp_path / "run"), "--steps", "2"])
    assert result(tmp_path / "run" / "backbone")["steps"] == 2
    assert (tmp_path / "run" / "report.html").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("tokenizer: PSNR ")
    assert printed[-1] == "features of a black image: (1, 96)"


def exported(run: Path, target: str, out: Path) -> str:
    assert main(["export", str(run), "--to", target, "--out", str(out)]) == 0
    return str(out)


@WHOLE
def test_feature_maps_with_timm(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    folder = exported(runs / "beit", "timm", tmp_path / "timm")
    capsys.readouterr()
    example = runpy.run_path(str(EXAMPLES / "features_with_timm.py"))
    example["main"]([folder, str(runs / "photos" / "down" / "00.png")])
    assert capsys.readouterr().out.splitlines() == ["features: (1, 16)", *["feature map: (1, 16, 4, 4)"] * 2]


@WHOLE
def test_classes_with_onnx(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    folder = exported(runs / "classes", "onnx", tmp_path / "onnx")
    capsys.readouterr()
    example = runpy.run_path(str(EXAMPLES / "classify_with_onnx.py"))
    example["main"]([folder, str(runs / "photos" / "down" / "00.png")])
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"across", "down"}


@WHOLE
def test_fine_tuning_with_transformers(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("transformers", "accelerate"):
        pytest.importorskip(library)
    folder = exported(runs / "beit", "huggingface", tmp_path / "beit")
    example = runpy.run_path(str(EXAMPLES / "finetune_with_transformers.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the Trainer
        example["main"]([folder, str(runs / "photos"), "--out", str(tmp_path / "tuned"), "--steps", "2"])
    assert "2 classes" in capsys.readouterr().out
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


def test_the_tour_has_no_outputs() -> None:
    """Pictures of one machine would be in every difference; a notebook that is run makes its own."""
    tour = json.loads((EXAMPLES / "tour.ipynb").read_text())
    code = [cell for cell in tour["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert resolves_all("".join("".join(cell["source"]) + "\n" for cell in code))


def resolves_all(code: str) -> bool:
    """Whether every import of smalti is of something that there is."""
    return all(resolves(*found) for found in imports_of(code))


@WHOLE
def test_the_tour_runs_from_its_first_cell_to_the_last(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    tour = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert tour.cells[1].source.endswith("STEPS = 300")
    tour.cells[1].source = tour.cells[1].source.replace("300", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter
        nbclient.NotebookClient(tour, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        "".join(output.get("data", {}).get("text/html", "") for output in cell.get("outputs", []))
        for cell in tour.cells
    ]
    assert sum('src="data:image/png;base64,' in html for html in shown) == 3, "as tokens, completed, inside"
    assert sum("<table>" in html for html in shown) == 5, "three results, a tokenizer and a network"


def run_example(name: str, *arguments: object) -> dict[str, Any]:
    """Run an example in its small form, and return what it defines."""
    example = runpy.run_path(str(EXAMPLES / name))
    example["main"]([str(argument) for argument in arguments])
    return example


@WHOLE
def test_few_labels(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (runs / "beit", runs / "photos", "--labels", 1, "--steps", 1)
    run_example("few_labels.py", *given, "--out", tmp_path / "few")
    assert capsys.readouterr().out.splitlines()[-1].startswith("   1 a class: pretrained ")
    assert (
        result(tmp_path / "few" / "drawn-1")["train_images"]
        == result(tmp_path / "few" / "pretrained-1")["train_images"]
    )


@WHOLE
def test_segmentation(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (runs / "beit", runs / "scenery", "--void", 11, "--predict", runs / "photos", "--steps", 1)
    run_example("segmentation.py", *given, "--out", tmp_path / "run")
    assert "test images: mean IoU " in capsys.readouterr().out
    assert len(list((tmp_path / "run" / "masks.masks").rglob("*.png"))) == 32


@WHOLE
def test_a_tokenizer_from_outside(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "backbone.safetensors"
    example = run_example("own_tokenizer.py", runs / "photos", "--steps", 1, "--out", out)
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= load_file(out).keys()
    tokenizer = example["MeanColourTokenizer"](example["MeanColour"](levels=4))
    ids = torch.arange(64).view(1, 8, 8)  # every colour
    assert torch.equal(tokenizer.encode(tokenizer.decode(ids)), ids)


@WHOLE
def test_parts_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array, out = tmp_path / "images.npy", tmp_path / "backbone.safetensors"
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    noise[:, :, 32:] = 90
    np.save(array, noise)
    example = runpy.run_path(str(EXAMPLES / "own_parts.py"))
    example["main"](str(array), str(out), "2")
    assert "'step': 2, 'lr': 8e-06," in capsys.readouterr().out
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= load_file(out).keys()

    images = torch.from_numpy(noise).permute(0, 3, 1, 2)
    mask, index = torch.zeros(12, 64, dtype=torch.bool), torch.arange(30).expand(12, 30)
    batch = Batch(
        images, torch.arange(12), torch.arange(12), mask=mask, mask_index=index, mask_weight=torch.ones(12, 30)
    )
    masked = example["SalientMasks"](Repeated(batch))(0)
    mask, index, _ = masked.masks
    assert torch.equal(torch.zeros_like(mask).scatter_(1, index, True), mask)
    assert mask.sum(1).tolist() == [30] * 12
    assert mask.view(12, 8, 8)[..., :4].float().mean() > 0.85, "the noisy half is masked, the even one hardly"
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1.0
    assert example["directions"](stripes).argmax(-1).unique().tolist() == [0], "edges that run down"


@dataclass(frozen=True)
class Repeated(BatchWrapper):
    batch: Batch

    def __call__(self, step: int) -> Batch:
        return self.batch


@WHOLE
def test_a_recipe_from_outside(runs: Path, tmp_path: Path) -> None:
    recipe = str(EXAMPLES / "own_recipe.py")
    for stage in ("train_tokenizer", "pretrain"):
        assert main(["explain", f"{recipe}:{stage}"]) == 0
    one = ["--data", str(runs / "photos"), "--plan.steps", "1"]
    small = [*TOKENIZER_FLAGS, *one, "--out", str(tmp_path / "vq")]
    assert main(["train-tokenizer", f"{recipe}:train_tokenizer", *small]) == 0
    given = [*PRETRAIN_FLAGS, *one, "--tokenizer", str(tmp_path / "vq"), "--accept-tokenizer"]
    assert main(["pretrain", f"{recipe}:pretrain", *given, "--out", str(tmp_path / "beit")]) == 0


@WHOLE
def test_features_with_scikit_learn(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    given = (runs / "beit", runs / "photos", "--groups", 2)
    run_example("features_with_scikit_learn.py", *given, "--out", tmp_path / "features.npy")
    printed = capsys.readouterr().out
    assert "32 images, 32 features, block 2\nlogistic regression: " in printed
    assert "group 1: " in printed


@WHOLE
def test_going_on_from_timm(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    given = ("test_vit", runs / "photos", "--tokenizer", runs / "tokenizer", "--steps", 1, "--drawn")
    run_example("continue_from_timm.py", *given, "--out", tmp_path / "further")
    assert "nats a masked token; by frequency" in capsys.readouterr().out
    assert (tmp_path / "further" / "timm" / "config.json").is_file()


def test_every_example_is_short_and_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path
        assert f"({path.name})" in index, path


SMALL = {"train-tokenizer": [*TOKENIZER_FLAGS, "--plan.steps", "2"], "pretrain": [*PRETRAIN_FLAGS, "--plan.steps", "2"]}
SMALL["pretrain"].append("--accept-tokenizer")
SMALL["evaluate"] = ["--draws", "2", "--no-baselines"]


@pytest.mark.docs
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its commands in order, with a tiny network; `plan`, which tries recipes as they are, has tests of its own."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos")
    (tmp_path / "photos" / "across").rename(tmp_path / "photos" / "Kiwi")
    picture(1, across=True).save("photos/Kiwi/Kiwi_001.jpg")
    (tmp_path / "src").symlink_to(ROOT / "src")
    blocks = list(blocks_of((ROOT / "docs" / "tutorial.md").read_text()))
    commands = [words[1:] for block in blocks if block.language == "bash" for words in commands_of(block)]
    for verb, *rest in commands:
        if verb not in ("install", "plan") and (verb != "export" or find_spec("timm")):
            assert main([verb, *rest, *SMALL.get(verb, [])]) == 0, (verb, *rest)
    for name in ("tokens.html", "tokens.png", "predicted.png"):
        assert Path(name).is_file()
    capsys.readouterr()
    if find_spec("timm"):
        exec(next(block.code for block in blocks if block.language == "python"), {})
        assert capsys.readouterr().out == "torch.Size([1, 16]) torch.Size([1, 17, 16])\n"


def python_of(page: str) -> Iterator[str]:
    return (block.code for block in blocks_of((ROOT / page).read_text()) if block.language == "python")


@WHOLE
def test_python_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What README and docs/embed.md say, as it stands there, with two steps and a network of 2 blocks."""
    monkeypatch.chdir(tmp_path)
    cpu: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
    tokenizer, backbone = tiny.train_tokenizer(), tiny.pretrain()
    tokenizer = replace(tokenizer, plan=replace(tokenizer.plan, steps=2, batch_size=16), **cpu)
    backbone = replace(backbone, plan=replace(backbone.plan, steps=2, batch_size=16), accept_tokenizer=True, **cpu)
    monkeypatch.setattr(tiny, "train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(tiny, "pretrain", lambda: backbone)
    photos = flat_pictures(tmp_path / "photos", 40)
    for name in ("a.jpg", "b.jpg"):
        picture(1, across=True).save(photos / name)
        picture(1, across=True).save(name)

    defined: dict[str, Any] = {}
    (readme,) = (code for code in python_of("README.md") if "smalti.load" in code)
    exec(readme, defined)
    assert defined["features"].shape == (2, 96)
    assert defined["tokens"].shape == (1, 8, 8)
    for out in ("features.npy", "features.parquet"):
        Path(out).unlink(missing_ok=True)
        smalti.embed(smalti.Embed("runs/beit", str(pictures(tmp_path / Path(out).suffix, 3)), out, num_workers=0))
    learnt, table, network = python_of("docs/embed.md")
    for code in (*([learnt] if find_spec("sklearn") else []), table, network):
        exec(code, defined)
    assert defined["x"].shape == (6, 96)
    assert defined["y"] == ["across"] * 3 + ["down"] * 3
