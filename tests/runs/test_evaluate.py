"""`smalti evaluate` of backbones: what stands beside the figures, where they are kept, weights of other programs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import main
from smalti.evaluation.probe import PIXELS, RANDOM_PAPER, RANDOM_USED, RANDOM_WIDTH, untrained
from smalti.exporting import huggingface, timm
from smalti.models.vit import nano
from smalti.runs.evaluations import last_probes, read_evaluations, write_evaluation
from smalti.runs.folder import RunFolder
from tests.exporting.networks import PAPER, RELEASED, backbone
from tests.small_runs import CPU, FEWEST, finetune, pictures, pretrain

FEW = [*CPU, "--draws", "2", "--poolings", "mean", "--json"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures, and a backbone trained on pixels."""
    folder = tmp_path_factory.mktemp("evaluate")
    pictures(folder / "photos")
    assert pretrain(folder / "photos", "", folder / "run", 2, "--target", "pixels") == 0
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str, str]:
    """The result, and what is printed and said."""
    capsys.readouterr()
    assert main(["evaluate", *arguments, *FEW]) == 0
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.out.splitlines()[-1])
    return found, said.out, said.err


def test_the_untrained_network_and_pixels_stand_beside_the_figures_which_are_kept(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, printed, said = evaluated(capsys, str(root / "run"), str(root / "photos"))
    assert list(found["baselines"]) == [RANDOM_PAPER, RANDOM_USED, PIXELS]
    for row in (found, *found["baselines"].values()):
        assert {"linear", "linear_interval", "knn", "layer", "few", "test_images"} <= set(row)
        assert all(0 <= end <= 1 for few in row["few"].values() for end in few["interval"] or ())
    better = max(found["baselines"][name]["linear"] for name in (RANDOM_PAPER, RANDOM_USED))
    assert f"worth {100 * (found['linear'] - better):+.1f} points of linear probe over the better" in printed
    assert any(line.startswith(f"{PIXELS}  ") for line in printed.splitlines())
    kept = json.loads((root / "run" / "evaluations" / "photos.json").read_text())
    assert f"kept: {root / 'run' / 'evaluations' / 'photos.json'}" in said
    assert kept["result"] == found
    assert (kept["kind"], kept["step"], kept["data"]) == ("Pretrain", 2, str(root / "photos"))
    assert kept["settings"]["draws"] == 2


def test_too_few_labelled_images_are_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, four = (str(pictures(tmp_path / str(count), count)) for count in (1, 2))
    found, _, said = evaluated(capsys, str(root / "run"), two)
    assert f"no probes: {two} has 1 to fit on and 1 held out with labels; they need at least 3 and 1" in said
    assert found["pixel_loss"] > 0
    assert "linear" not in found
    assert main(["evaluate", str(root / "run"), four, *FEWEST]) == 0


def test_a_flag_leaves_the_baselines_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, printed, _ = evaluated(capsys, str(root / "run"), str(root / "photos"), "--no-baselines")
    assert "baselines" not in found
    assert PIXELS not in printed


def test_results_are_kept_by_data_and_the_newest_of_each_stays(root: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    names = [
        write_evaluation(folder.path, data, test, {"result": {"n": number}}).name
        for number, (data, test) in enumerate(
            [
                ("a/My photos", ""),
                ("b/My photos", ""),
                ("a/My photos", "t"),
                ("a/My photos", ""),
                ("https://x/y?sig=1", ""),
            ]
        )
    ]
    assert names[0] == names[3] == "My-photos.json"
    assert names[4] == "y.json"
    assert len(set(names)) == 4
    kept = read_evaluations(folder.path)
    assert kept["My-photos"]["result"] == {"n": 3}
    assert kept["y"]["data"] == "https://x/y"
    (tmp_path / "run" / "evaluations" / "y.json").write_text("{")
    (tmp_path / "run" / "evaluations" / "z.json").symlink_to("nowhere")
    assert set(read_evaluations(folder.path)) == {Path(name).stem for name in names} - {"y"}
    assert last_probes(folder.path) is None
    write_evaluation(folder.path, "c", "", {"result": {"linear": 0.5}})
    assert (last_probes(folder.path) or {})["result"] == {"linear": 0.5}


def test_of_a_fine_tuned_run_and_where_nothing_can_be_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = root / "tuned"
    assert finetune(root / "photos", "", run, 2) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(root / "photos"), *CPU, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads((run / "evaluations" / "photos.json").read_text())
    assert (kept["kind"], kept["result"]) == ("Finetune", found)
    (run / "evaluations" / "photos.json").unlink()
    (run / "evaluations").rmdir()
    (run / "evaluations").write_text("")
    assert main(["evaluate", str(run), str(root / "photos"), *CPU, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == found
    assert f"warning: the result is not kept: cannot write into {run / 'evaluations'}" in said.err


@pytest.mark.parametrize("write", [timm.write, huggingface.write])
def test_weights_of_other_programs_are_measured_as_what_import_makes_of_them(
    write: Callable[..., object], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = replace(PAPER if write is timm.write else RELEASED, mean=(0.5,), std=(0.5,))
    (tmp_path / "weights").mkdir()
    write(backbone(vit), tmp_path / "weights")
    heads = ["--num-heads", str(vit.num_heads)]
    assert main(["import", str(tmp_path / "weights"), "--out", str(tmp_path / "model"), *heads]) == 0
    place = str(tmp_path / "weights")
    photos = ["--held-out", "0.2", "--no-baselines"]
    found, _, said = evaluated(capsys, place, str(root / "photos"), *heads, *photos, "--img-size", "16", "16")
    assert f"{place}: a backbone of another program, 16 x 16 pixels" in said
    assert not (tmp_path / "weights" / "evaluations").exists()
    again, _, _ = evaluated(capsys, str(tmp_path / "model"), str(root / "photos"), *photos)
    assert (found["linear"], found["knn"], found["validation"]) == (again["linear"], again["knn"], again["validation"])
    assert main(["evaluate", place, str(root / "photos"), *CPU, *heads, "--img-size", "8", "32"]) == 2
    assert "no positions for images of 8x32; they are for 16x16" in capsys.readouterr().err


def test_no_weights_are_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    assert main(["evaluate", str(tmp_path / "weights.pth"), str(root / "photos"), *CPU]) == 4
    assert "weights.pth" in capsys.readouterr().err.splitlines()[-1]


def test_two_starts_of_any_network() -> None:
    assert list(untrained(nano())) == [RANDOM_PAPER, RANDOM_USED]
    assert list(untrained(PAPER)) == [RANDOM_PAPER, RANDOM_WIDTH]
    assert untrained(nano())[RANDOM_USED] == nano()


@pytest.mark.parametrize(("side", "size"), [("20", ("16", "16")), ("16", ("16", "24"))])
def test_images_of_another_size_than_the_network_are_resized(
    side: str, size: tuple[str, str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--target", "pixels", "--data.side", side, "--backbone.img-size", *size)
    assert pretrain(root / "photos", "", tmp_path / "run", 1, *flags) == 0
    found, _, _ = evaluated(capsys, str(tmp_path / "run"), str(root / "photos"))
    assert list(found["baselines"]) == [RANDOM_PAPER, RANDOM_USED, PIXELS]
