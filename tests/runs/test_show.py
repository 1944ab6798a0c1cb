"""Looking at a model: `smalti show`, `smalti evaluate` of a tokenizer, and the codebook in the report."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.compute import choose_compute
from smalti.core.errors import DataError, UsageError
from smalti.data.reading import even_sample
from smalti.evaluation.attention import block_attentions
from smalti.evaluation.reconstruction import describe_tokenizer
from smalti.flags import parse
from smalti.report.heat_maps import component_colours, heat_map
from smalti.report.pictures import to_pixels
from smalti.runs import evaluate, report, show
from smalti.runs.evaluate import Evaluate
from smalti.runs.export import Export
from smalti.runs.export import main as export
from smalti.runs.inside import Inside
from smalti.runs.model_pictures import Show, see
from smalti.runs.models import load_inpainter
from smalti.runs.report import Report
from tests import oracles
from tests.report.reading import pictures_in
from tests.small_runs import finetune, newest_checkpoint, picture, pictures, scenes, segment

NASTY = "<script>&amp;.png"
CPU_FP32 = choose_compute("cpu", "fp32")


def of(model: Path, *images: Path | str, out: Path, count: int = 3, **options: Any) -> Show:
    return Show(str(model), tuple(map(str, images)), str(out), count, precision="fp32", device="cpu", **options)


def headings(page: Path) -> list[str]:
    """Of the first grid."""
    return re.findall(r"<b>(.*?)</b>", page.read_text().partition('class="tiles"')[2].partition("</div>")[0])


def test_a_page_shows_each_image_decoded_and_as_tokens(runs: Path, tmp_path: Path) -> None:
    picture(3, across=True).save(tmp_path / NASTY)
    out = tmp_path / "page.html"
    assert show.main(of(runs / "tokenizer", tmp_path / NASTY, runs / "photos", out=out)) == {
        "shown": str(out),
        "images": 4,
    }
    text = out.read_text()
    assert re.findall(r"<b>(.*?)</b>", text)[:3] == ["original", "decoded", "visual tokens"]
    assert "<p>&lt;script&gt;&amp;amp;.png</p>" in text
    assert "<script" not in text
    assert f"<p>across/{even_sample(32, 3)[0]:02}.png</p>" in text
    shown = pictures_in(text)
    assert [pixels.shape for pixels in shown] == [(16, 16, 3)] * 12
    original, decoded, tokens = (pixels.astype(int) for pixels in shown[:3])
    assert np.abs(original - decoded).mean() < 60
    every = [np.stack(shown[column::3]).astype(float) for column in (1, 2)]
    assert len(np.unique(every[1].reshape(-1, 3), axis=0)) <= 16, "a colour for each code at most"
    assert np.abs(every[0].mean((0, 1, 2)) - every[1].mean((0, 1, 2))).max() < 1, "the mean of what it is decoded to"
    assert (tokens[:4, :4] == tokens[0, 0]).all(), "a token is as large as its patch"


def test_a_fine_tuned_network_says_what_it_sees_beside_what_is_true(runs: Path, tmp_path: Path) -> None:
    photos, out = runs / "photos", tmp_path / "page.html"
    shown = of(runs / "classes", photos, photos / "down" / "03.png", out=out, attention=(2,), pca=True)
    assert show.main(shown)["images"] == 4
    captions = re.findall(r"<p>(.*?)</p>", out.read_text().partition('class="tiles"')[2])
    said = [re.fullmatch(r"(.*): (across|down) (\d+)%, (across|down) (\d+)%(?: \(true: (.*)\))?", c) for c in captions]
    assert len(said) == 4
    for one in said:
        assert one is not None
        assert abs(int(one[3]) + int(one[5]) - 100) <= 1
        assert int(one[3]) >= int(one[5])
        assert one[6] == (one[1].split("/")[0] if "/" in one[1] else None), "a file alone has no class"
    assert headings(out) == ["original", "attention, block 2", "PCA"]


def test_a_segmenter_paints_the_classes_of_pixels(runs: Path, tmp_path: Path) -> None:
    show.main(of(runs / "scenes", runs / "scenery" / "images", out=tmp_path / "pixels.html", rollout=True))
    assert headings(tmp_path / "pixels.html") == ["original", "predicted", "rollout"]
    seen = see(of(runs / "scenes", runs / "scenery", out=tmp_path / "pixels.png"))
    names = [f"{place:02}.png" for place in even_sample(12, 3)]
    assert [caption.split(":")[0] for caption in seen.captions] == names, "masks are no images"
    assert list(seen.columns) == ["original", "predicted", "true"]
    with Image.open(runs / "scenery" / "masks" / names[1]) as file:
        mask = np.asarray(file)[:, 4:28]  # the centre of 24 x 32
    pixel = ((np.arange(16) + 0.5) * 1.5).astype(int)
    expected, truth = mask[np.ix_(pixel, pixel)], seen.columns["true"][1]
    assert ((truth == 0).all(-1) == (expected == 11)).all(), "void is black"
    assert len(np.unique(truth.reshape(-1, 3), axis=0)) == len(np.unique(expected))


def test_a_backbone_shows_what_it_fills_in_and_how_sure_it_is(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert show.main(of(runs / "beit", runs / "photos", out=out, count=20))["images"] == 20
    assert headings(out) == ["original", "masked", "tokenizer", "predicted", "entropy"]
    original, masked, _, _, sure, *_, scale = pictures_in(out.read_text())
    hidden = (masked != original).any(-1).reshape(4, 4, 4, 4).any((1, 3))
    assert 0 < hidden.mean() < 1
    assert f"{np.log(16):.1f} nats: a guess at random" in out.read_text()
    grey = (sure == sure[..., :1]).all(-1).reshape(4, 4, 4, 4)
    assert (grey.any((1, 3)) == grey.all((1, 3))).all()
    assert (grey.all((1, 3)) == ~hidden).all(), "masked patches have an entropy, a colour; the others are pale and grey"
    assert scale.shape[:2] == (1, 128)


@pytest.mark.parametrize("model", ["beit", "crossed"])
def test_all_columns_with_either_decoder(model: str, runs: Path, tmp_path: Path) -> None:
    """What has mask tokens in its encoder, and what sees visible patches alone, under a mask of the user's."""
    hidden = np.zeros((4, 4), np.uint8)
    hidden[1:3, :2] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    shown = of(
        runs / model,
        runs / "photos",
        out=tmp_path / "page.html",
        mask=str(tmp_path / "mask.png"),
        samples=2,
        attention=(1, 2),
        heads="all",
        query=(0, 3),
        rollout=True,
        pca=True,
    )
    show.main(shown)
    assert headings(tmp_path / "page.html")[4:] == [
        *("entropy", "sample 1", "sample 2"),
        *("block 1, head 1", "block 1, head 2", "block 2, head 1", "block 2, head 2", "rollout", "PCA"),
    ]
    pictures, drawn = pictures_in((tmp_path / "page.html").read_text())[:-1], []
    assert len(pictures) == 3 * 13
    for number in range(3):
        original, masked, *others = pictures[13 * number : 13 * (number + 1)]
        assert ((masked != original).any(-1) == hidden.repeat(4, 0).repeat(4, 1).astype(bool)).mean() > 0.95
        drawn.append((others[3] != others[4]).any())
    assert any(drawn), "two samples differ"
    text = (tmp_path / "page.html").read_text()
    assert "the patch in row 0, column 3" in text
    assert "Tokens of samples are drawn by their probabilities (temperature 1)" in text
    first = (tmp_path / "page.html").read_bytes()
    show.main(shown)
    assert (tmp_path / "page.html").read_bytes() == first


def test_a_backbone_alone_has_attention_and_features(runs: Path, tmp_path: Path) -> None:
    export(Export(str(runs / "beit"), "bundle", str(tmp_path / "bundle"), "backbone", None))
    seen = see(of(tmp_path / "bundle", runs / "photos", out=tmp_path / "x.png", attention=(2,), pca=True))
    assert list(seen.columns) == ["original", "attention, block 2", "PCA"]
    whole = see(of(runs / "beit", runs / "photos", out=tmp_path / "x.png", attention=(2,), pca=True)).columns
    assert all((pictures == whole[name]).all() for name, pictures in seen.columns.items())
    with pytest.raises(UsageError, match="is a backbone alone; without the head nothing is predicted from it"):
        see(of(tmp_path / "bundle", runs / "photos", out=tmp_path / "x.png"))


def test_maps_are_of_whole_images_as_the_network_computes_them(runs: Path) -> None:
    inpainter = load_inpainter(str(runs / "crossed"), CPU_FP32)
    backbone, images = inpainter.model.backbone, torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn, note = Inside(attention=(2,), heads=(2,), query="mean", rollout=True, pca=True).draw(
        backbone, images, 1, CPU_FP32
    )
    blocks = [weights.double().numpy() for weights in block_attentions(backbone, images, CPU_FP32)]
    asked = {
        "block 2, head 2": blocks[1][:, 1, 1:, 1:].mean(1),
        "rollout": np.stack([oracles.rollout([b[n] for b in blocks])[1:, 1:].mean(0) for n in range(9)]),
    }
    for name, values in asked.items():
        expected = heat_map(values.reshape(9, 4, 4), None, "inferno", to_pixels(images))
        assert np.abs(drawn[name].astype(int) - expected).max() <= 1, name
    with torch.no_grad():
        tokens = backbone.encode(backbone.embed(images), layers=True).layers[0][:, 1:]
    scores, shares = oracles.principal_components(tokens.reshape(-1, 16).double().numpy(), 3)
    expected = component_colours(scores.reshape(9, 4, 4, 3), 16, 16)
    assert np.abs(drawn["PCA"].astype(int) - expected).max() <= 1
    assert f"({shares[:3].sum():.0%} of the variance)" in note


def test_a_mask_lies_over_the_centre_square_of_images(runs: Path, tmp_path: Path) -> None:
    """What a picture of any size and shape says of patches: white, or transparent, is masked."""
    wide = np.zeros((40, 60, 4), np.uint8)
    wide[..., 3] = 255
    wide[:10, 10:20] = 255  # the first patch of the square in the middle
    wide[30:, 40:50, 3] = 0  # the last
    Image.fromarray(wide).save(tmp_path / "wide.png")
    show.main(of(runs / "beit", runs / "photos", out=tmp_path / "p.html", count=1, mask=str(tmp_path / "wide.png")))
    original, masked = pictures_in((tmp_path / "p.html").read_text())[:2]
    changed = (original != masked).any(-1)
    assert changed[:4, :4].mean() > 0.9
    assert changed[12:, 12:].mean() > 0.9
    assert changed.mean() < 0.13


def test_one_picture_has_headings_captions_and_a_scale(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    show.main(of(runs / "tokenizer", runs / "photos", out=out, count=2))
    with Image.open(out) as sheet:
        assert sheet.size == (3 * (14 * 16 + 4) + 4, 2 * (14 * 16 + 8) + 3 * 28)
    show.main(of(runs / "beit", runs / "photos", out=out, count=2))
    with Image.open(out) as sheet:
        assert sheet.size == (5 * (14 * 16 + 4) + 4, 2 * (14 * 16 + 8) + 4 * 28)


def test_a_notebook_shows_the_same_picture_and_escapes_names(runs: Path, tmp_path: Path) -> None:
    picture(3, across=True).save(tmp_path / NASTY)
    asked = of(runs / "beit", tmp_path / NASTY, out=tmp_path / "x.png", pca=True)
    html = see(asked)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;&amp;amp;.png" in html
    assert "principal components" in html
    show.main(asked)
    (shown,) = pictures_in(html)
    np.testing.assert_array_equal(shown, np.asarray(Image.open(tmp_path / "x.png")))


def test_what_a_model_has_not_is_said_in_a_line(runs: Path, tmp_path: Path) -> None:
    def refused(model: str, **options: Any) -> str:
        with pytest.raises(UsageError) as error:
            show.main(of(runs / model, runs / "photos", out=tmp_path / "x.png", **options))
        return str(error.value)

    for name, side, white in (("small", 3, 0), ("black", 16, 0), ("white", 16, 255)):
        Image.fromarray(np.full((side, side), white, np.uint8)).save(tmp_path / f"{name}.png")
    mask = str(tmp_path / "{}.png")
    assert "small.png has 3 x 3 pixels for 4 x 4 patches; paint at least a pixel" in refused(
        "crossed", mask=mask.format("small")
    )
    assert "black.png covers none of 4 x 4 patches; paint white what is masked" in refused(
        "beit", mask=mask.format("black")
    )
    said = refused("crossed", mask=mask.format("white"))
    assert "no patch to see; all 16 are masked, and its encoder sees visible patches alone; leave some black" in said
    show.main(of(runs / "beit", runs / "photos", out=tmp_path / "x.png", count=1, mask=mask.format("white")))
    assert "is a tokenizer; it has no attention" in refused("tokenizer", pca=True)
    assert "--mask for" in refused("tokenizer", mask=mask.format("black"))
    assert "--samples for" in refused("classes", samples=1)
    assert "block 3 of 2; use 1 to 2" in refused("beit", attention=(3,))
    assert "head 3 of 2; use 1 to 2" in refused("beit", attention=(1,), heads=(3,))
    assert "no patch (4, 0) in 4 x 4; use 0 0 to 3 3" in refused("beit", rollout=True, query=(4, 0))
    assert "heads without blocks; add --attention BLOCK" in refused("beit", heads="all")
    assert "a layer, and nothing is drawn of its features; add --pca" in refused("beit", layer=1)
    assert "a query, and no attention is drawn" in refused("beit", query="mean")
    assert "a temperature of 0.5, and nothing is drawn; add --samples 3" in refused("beit", temperature=0.5)
    assert "17 samples; use 0 to 16" in refused("beit", samples=17)


def test_options_as_they_are_typed(runs: Path, tmp_path: Path) -> None:
    typed = "--attention 1 2 --heads 1 --query 0 3 --rollout --pca --layer 1 --samples 2 --temperature 0.7"
    config = parse(Show, None, ["run", "a.png", "b.png", *typed.split()], "show")
    assert (config.model, config.images) == ("run", ("a.png", "b.png"))
    assert (config.attention, config.heads, config.query, config.layer) == ((1, 2), (1,), (0, 3), 1)
    assert (config.samples, config.temperature, config.rollout, config.pca) == (2, 0.7, True, True)
    assert (
        parse(Show, None, ["run", "a.png", "--attention", "1", "--heads", "all", "--query", "mean"], "show").heads
        == "all"
    )


def test_what_cannot_be_shown(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write pictures to 'x\.gif'; use a name in \.html or \.png"):
        of(runs / "tokenizer", runs / "photos", out=Path("x.gif"))
    with pytest.raises(UsageError, match="no images given; smalti show MODEL IMAGE"):
        of(runs / "tokenizer", out=Path("x.png"))
    with pytest.raises(DataError, match=r"nowhere\.png"):
        show.main(of(runs / "tokenizer", tmp_path / "nowhere.png", out=tmp_path / "x.png"))
    with pytest.raises(DataError, match="no folder"):
        show.main(of(runs / "tokenizer", tmp_path / "nowhere", out=tmp_path / "x.png"))


def measured(runs: Path) -> dict[str, Any]:
    return evaluate.main(Evaluate(str(runs / "tokenizer"), str(runs / "photos"), precision="fp32", device="cpu"))


def test_evaluate_prints_what_it_measures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(runs)
    printed = capsys.readouterr().out
    assert describe_tokenizer(found) in printed
    assert json.loads(json.dumps(found)) == found
    assert None not in found.values()
    for name, key in (("perplexity", "perplexity"), ("SSIM", "ssim"), ("PSNR, hard tokens, dB", "psnr_db")):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert float(line.removeprefix(name).split()[0]) == pytest.approx(found[key], abs=0.06)
    assert f"on {found['window_tokens']} held-out tokens" in printed


def test_a_number_that_is_not_there_is_a_dash(runs: Path) -> None:
    lines = describe_tokenizer(measured(runs) | {"elbo_nats": None, "kmeans_perplexity": None}).splitlines()
    assert next(line for line in lines if line.startswith("ELBO")).endswith("  -")
    assert next(line for line in lines if line.startswith("perplexity")).endswith("  -")


def test_the_report_has_the_codebook_with_patches_and_where_they_occur(runs: Path, tmp_path: Path) -> None:
    report.main(Report((str(runs / "tokenizer"),), str(tmp_path / "page.html")))
    text = (tmp_path / "page.html").read_text()
    cards = re.findall(r'<div title="token (\d+): (.*?) %"', text)
    assert 2 <= len(cards) <= 16
    shares = [float(share) for _, share in cards]
    assert shares == sorted(shares, reverse=True)
    assert f"{len(cards)} of 16 visual tokens occur" in text
    assert f'alt="a patch with token {cards[0][0]}"' in text
    places = text.split("Where visual tokens occur")[-1]
    named = re.findall(r"code (\d+): ", places)
    assert set(named) <= {number for number, _ in cards}
    assert named


def test_networks_of_images_that_are_not_square(tmp_path: Path) -> None:
    wide = ("--backbone.img-size", "16", "24")
    assert finetune(pictures(tmp_path / "photos"), "", tmp_path / "classes", 1, *wide) == 0
    assert segment(scenes(tmp_path / "scenes"), "", tmp_path / "pixels", 1, *wide) == 0
    for run, images in (("classes", "photos"), ("pixels", "scenes")):
        seen = see(of(tmp_path / run, tmp_path / images, out=tmp_path / "page.html", attention=(1,)))
        assert {column.shape for column in seen.columns.values()} == {(3, 16, 24, 3)}
        assert len(seen.columns) == (2 if run == "classes" else 4)


def test_a_checkpoint_has_the_classes_of_its_run(runs: Path, tmp_path: Path) -> None:
    shown = [
        see(of(model, runs / "photos", out=tmp_path / "page.html"))
        for model in (runs / "classes", newest_checkpoint(runs / "classes"))
    ]
    assert shown[0].captions == shown[1].captions
