"""Looking at a model: `smalti show`, `smalti evaluate` of a tokenizer, and the codebook in the report."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import DataError, UsageError
from smalti.runs import evaluate, report, show
from smalti.runs.evaluate import Evaluate, describe_tokenizer
from smalti.runs.report import Report
from smalti.runs.show import Show
from tests.report.reading import pictures_in
from tests.small_runs import finetune, picture, pictures, pretrain, scenes, segment, train_tokenizer

NASTY = "<script>&amp;.png"


@dataclass(frozen=True)
class Runs:
    photos: Path
    tokenizer: Path
    backbone: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("show")
    made = Runs(pictures(root / "photos"), root / "tokenizer", root / "backbone")
    assert train_tokenizer(made.photos, made.tokenizer, 6) == 0
    assert pretrain(made.photos, made.tokenizer, made.backbone, 2) == 0
    return made


def of(model: Path, *images: Path | str, out: Path, count: int = 3) -> Show:
    return Show(str(model), tuple(map(str, images)), str(out), count, precision="fp32", device="cpu")


def test_a_page_shows_each_image_decoded_and_as_tokens(runs: Runs, tmp_path: Path) -> None:
    picture(3, across=True).save(tmp_path / NASTY)
    out = tmp_path / "page.html"
    assert show.main(of(runs.tokenizer, tmp_path / NASTY, runs.photos, out=out)) == {"shown": str(out), "images": 4}
    text = out.read_text()
    assert re.findall(r"<b>(.*?)</b>", text)[:3] == ["original", "decoded", "visual tokens"]
    assert "<p>&lt;script&gt;&amp;amp;.png</p>" in text
    assert "<script" not in text
    assert "<p>across/00.png</p>" in text
    shown = pictures_in(text)
    assert [pixels.shape for pixels in shown] == [(16, 16, 3)] * 12
    original, decoded, tokens = (pixels.astype(int) for pixels in shown[:3])
    assert np.abs(original - decoded).mean() < 60
    every = [np.stack(shown[column::3]).astype(float) for column in (1, 2)]
    assert len(np.unique(every[1].reshape(-1, 3), axis=0)) <= 16, "a colour for each code at most"
    assert np.abs(every[0].mean((0, 1, 2)) - every[1].mean((0, 1, 2))).max() < 1, "the mean of what it is decoded to"
    assert (tokens[:4, :4] == tokens[0, 0]).all(), "a token is as large as its patch"


def test_a_fine_tuned_network_says_what_it_sees(runs: Runs, tmp_path: Path) -> None:
    assert finetune(runs.photos, "", tmp_path / "classes", 2) == 0
    assert show.main(of(tmp_path / "classes", runs.photos, out=tmp_path / "page.html"))["images"] == 3
    text = (tmp_path / "page.html").read_text()
    said = re.findall(r"<p>across/\d+.png: (across|down) (\d+)%, (across|down) (\d+)%</p>", text)
    assert said
    assert all(abs(int(one[1]) + int(one[3]) - 100) <= 1 and int(one[1]) >= int(one[3]) for one in said)
    boxes = scenes(tmp_path / "boxes")
    assert segment(boxes, "", tmp_path / "pixels", 2) == 0
    show.main(of(tmp_path / "pixels", boxes / "images", out=tmp_path / "pixels.html"))
    assert re.findall(r"<b>(.*?)</b>", (tmp_path / "pixels.html").read_text())[:2] == ["original", "predicted"]
    show.main(of(tmp_path / "pixels", boxes / "images", out=tmp_path / "pixels.png"))


def test_a_backbone_shows_what_it_fills_in(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert show.main(of(runs.backbone, runs.photos, out=out, count=20))["images"] == 20
    assert re.findall(r"<b>(.*?)</b>", out.read_text())[:4] == ["original", "masked", "tokenizer", "predicted"]
    original, masked = pictures_in(out.read_text())[:2]
    masked = (masked != original).any(-1)
    assert 0 < masked.mean() < 1


def test_the_same_as_one_picture(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    show.main(of(runs.tokenizer, runs.photos, out=out, count=2))
    with Image.open(out) as sheet:
        assert sheet.size == (3 * (7 * 16 + 4) + 4, 2 * (7 * 16 + 4) + 4)


def test_what_cannot_be_shown(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write pictures to 'x\.gif'; use a name in \.html or \.png"):
        of(runs.tokenizer, runs.photos, out=Path("x.gif"))
    with pytest.raises(UsageError, match="no images given; smalti show MODEL IMAGE"):
        of(runs.tokenizer, out=Path("x.png"))
    with pytest.raises(DataError, match=r"nowhere\.png"):
        show.main(of(runs.tokenizer, tmp_path / "nowhere.png", out=tmp_path / "x.png"))
    with pytest.raises(DataError, match="no folder"):
        show.main(of(runs.tokenizer, tmp_path / "nowhere", out=tmp_path / "x.png"))


def measured(runs: Runs) -> dict[str, Any]:
    return evaluate.main(Evaluate(str(runs.tokenizer), str(runs.photos), precision="fp32", device="cpu"))


def test_evaluate_prints_what_it_measures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(runs)
    printed = capsys.readouterr().out
    assert describe_tokenizer(found) in printed
    assert json.loads(json.dumps(found)) == found
    assert None not in found.values()
    for name, key in (("perplexity", "perplexity"), ("SSIM", "ssim"), ("PSNR, hard tokens, dB", "psnr_db")):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert float(line.removeprefix(name).split()[0]) == pytest.approx(found[key], abs=0.06)
    assert f"on {found['window_tokens']} held-out tokens" in printed


def test_a_number_that_is_not_there_is_a_dash(runs: Runs) -> None:
    lines = describe_tokenizer(measured(runs) | {"elbo_nats": None, "kmeans_perplexity": None}).splitlines()
    assert next(line for line in lines if line.startswith("ELBO")).endswith("  -")
    assert next(line for line in lines if line.startswith("perplexity")).endswith("  -")


def test_the_report_has_the_codebook_with_typical_patches(runs: Runs, tmp_path: Path) -> None:
    report.main(Report((str(runs.tokenizer),), str(tmp_path / "page.html")))
    text = (tmp_path / "page.html").read_text()
    cards = re.findall(r'<div title="token (\d+): (.*?) %"', text)
    assert 2 <= len(cards) <= 16
    shares = [float(share) for _, share in cards]
    assert shares == sorted(shares, reverse=True)
    assert f"{len(cards)} of 16 visual tokens occur" in text
    assert f'alt="a patch with token {cards[0][0]}"' in text
