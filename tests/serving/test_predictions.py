"""What the API says of a model is what the model computes."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("starlette")

from smalti.core.contracts import Batch
from smalti.core.errors import DataError, UsageError
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.tokens import tokenized
from smalti.evaluation.attention import attention
from smalti.evaluation.codebook_survey import prototypes
from smalti.evaluation.inpainting import inpaint, paint
from smalti.functional.masking import Random, mask_index
from smalti.report.pictures import to_pixels
from smalti.serving.predictions import MAX_PIXELS, Predictor
from smalti.serving.requests import Attend, Mask, Predict
from smalti.training.targets import Pixels
from tests.serving.models import CPU, predictor_of
from tests.small_runs import picture, pretrain

MASKED = (1, 2, 5, 6, 9)
PAINTED = Mask(patches=MASKED)


@pytest.fixture(scope="module")
def pixels(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    run = tmp_path_factory.mktemp("pixels") / "run"
    assert pretrain(runs / "photos", "", run, 2, "--target", "pixels") == 0
    return predictor_of(run)


@pytest.fixture(scope="module", params=["beit", "crossed"])
def predictor(request: pytest.FixtureRequest, runs: Path) -> Predictor:
    """With mask tokens in the encoder, and with a decoder."""
    return predictor_of(runs / request.param)


def pixels_of(uri: str) -> NDArray[np.uint8]:
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    return found if found.ndim == 3 else found[..., None]


def batch_of(predictor: Predictor, name: str, masked: tuple[int, ...]) -> Batch:
    image = torch.from_numpy(predictor.images[name].transpose(2, 0, 1).copy())[None]
    batch = predictor.views.held_out_batch(InMemoryDataset(image, torch.full((1,), -1)), np.zeros(1, np.int64))
    mask = np.isin(np.arange(16), masked)[None]
    index, weight = mask_index(mask, len(masked))
    batch = replace(
        batch, mask=torch.from_numpy(mask), mask_index=torch.from_numpy(index), mask_weight=torch.from_numpy(weight)
    )
    return batch if predictor.tokenizer is None else tokenized(batch, predictor.tokenizer, CPU, chunk=1)


def test_predictions_are_those_of_samples(predictor: Predictor) -> None:
    assert predictor.tokenizer is not None
    found = predictor.predict(Predict("astronaut", PAINTED, guesses=3))
    seen = inpaint(predictor.model, predictor.tokenizer, batch_of(predictor, "astronaut", MASKED), CPU)
    assert found["masked"] == list(MASKED)
    assert found["tokens"] == seen.ids[0].tolist()
    assert found["predicted_tokens"] == seen.predicted_ids[0].tolist()
    for name, expected in (("original", seen.original), ("tokenizer", seen.tokenizer), ("predicted", seen.predicted)):
        np.testing.assert_array_equal(pixels_of(found["pictures"][name]), to_pixels(expected)[0], name)
    for guess in found["guesses"]:
        assert guess["best"][0]["code"] == found["predicted_tokens"][guess["patch"]]
        assert guess["code"] == found["tokens"][guess["patch"]]


def test_entropy_loss_and_guesses_are_those_of_the_logits(predictor: Predictor) -> None:
    batch = batch_of(predictor, "coffee", MASKED)
    assert batch.mask is not None
    assert batch.mask_index is not None
    assert batch.ids is not None
    with torch.no_grad():
        p = predictor.model(batch.image, batch.mask, batch.mask_index)[0].softmax(-1)
    found = predictor.predict(Predict("coffee", PAINTED, guesses=4))
    entropy = torch.tensor([found["entropy"][patch] for patch in MASKED])
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1))
    assert [patch for patch, value in enumerate(found["entropy"]) if value is None] == [
        patch for patch in range(16) if patch not in MASKED
    ]
    own = p.gather(1, batch.ids[0, list(MASKED)][:, None])[:, 0]
    assert found["loss_nats"] == pytest.approx(float(-own.log().mean()), abs=1e-5)
    torch.testing.assert_close(torch.tensor([guess["probability"] for guess in found["guesses"]]), own)
    shares = [[code["probability"] for code in guess["best"]] for guess in found["guesses"]]
    torch.testing.assert_close(torch.tensor(shares), p.topk(4).values)


def test_every_code_that_is_named_has_its_decoded_tile(predictor: Predictor) -> None:
    assert predictor.tokenizer is not None
    found = predictor.predict(Predict("rocket", PAINTED))
    named = {code["code"] for guess in found["guesses"] for code in guess["best"]}
    assert {str(code) for code in named} <= found["tiles"].keys()
    (tile,) = prototypes(predictor.tokenizer, torch.tensor([min(named)]), CPU)
    np.testing.assert_array_equal(pixels_of(found["tiles"][str(min(named))]), to_pixels(tile[None])[0])


def test_a_sample_is_a_function_of_its_seed(predictor: Predictor) -> None:
    def drawn(**options: Any) -> list[list[int]]:
        found = predictor.predict(Predict("camera", PAINTED, **options))
        tokens = [sample["tokens"] for sample in found["samples"]]
        visible = [patch for patch in range(16) if patch not in MASKED]
        assert all([row[p] for p in visible] == [found["tokens"][p] for p in visible] for row in tokens)
        return tokens

    three = drawn(samples=3)
    assert drawn(samples=5)[:3] == three, "more samples do not change those before them"
    assert len({tuple(row) for row in three}) > 1
    assert drawn(samples=3, seed=1) != three
    assert drawn(samples=3, temperature=10.0) != three


def test_a_cold_sample_is_the_best_guess(predictor: Predictor) -> None:
    found = predictor.predict(Predict("camera", PAINTED, samples=1, temperature=0.05))
    close = [
        guess for guess in found["guesses"] if guess["best"][0]["probability"] > 2 * guess["best"][1]["probability"]
    ]
    for guess in close:
        assert found["samples"][0]["tokens"][guess["patch"]] == guess["best"][0]["code"]


def test_samples_follow_the_probabilities(predictor: Predictor) -> None:
    """Of one masked patch: the share of each code in 800 draws."""
    asked = Predict("gravel", Mask(patches=(5,)), guesses=16, samples=8)
    shares = {code["code"]: code["probability"] for code in predictor.predict(asked)["guesses"][0]["best"]}
    drawn = [s["tokens"][5] for seed in range(100) for s in predictor.predict(replace(asked, seed=seed))["samples"]]
    counts = np.bincount(drawn, minlength=16) / len(drawn)
    expected = np.array([shares[code] for code in range(16)])
    assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / len(drawn))


@pytest.mark.parametrize("count", [0, 1, 15, 16])
def test_any_number_of_patches_can_be_masked(predictor: Predictor, count: int) -> None:
    found = predictor.predict(Predict("astronaut", Mask(patches=tuple(range(count))), samples=2))
    assert len(found["guesses"]) == count
    assert found["predicted_tokens"][count:] == found["tokens"][count:]
    assert (found["loss_nats"] is None) == (count == 0)
    for layer in range(1, len(predictor.model.blocks) + 1):
        rows = predictor.attend(Attend("astronaut", Mask(patches=tuple(range(count))), layer))["attention"]
        assert len(rows) == 16


def test_attention_is_what_the_network_computes(predictor: Predictor) -> None:
    batch, model = batch_of(predictor, "astronaut", MASKED), predictor.model
    in_decoder, visible = model.decoder is not None, [patch for patch in range(16) if patch not in MASKED]
    for layer in range(1, len(model.blocks) + 1):
        found = attention(model, batch, CPU, layer)
        encoder = layer <= len(model.backbone.blocks)
        asking = (visible if encoder else list(MASKED)) if in_decoder else list(range(16))
        assert (~found.cls[0].isnan()).nonzero()[:, 0].tolist() == asking
        total = found.patches[:, asking].sum(-1) + found.cls[:, asking]
        torch.testing.assert_close(total, torch.ones_like(total))
        if in_decoder:
            assert float(found.patches[:, asking][:, :, list(MASKED)].abs().max()) == 0
        rows = predictor.attend(Attend("astronaut", PAINTED, layer, head=1))["attention"]
        assert [patch for patch, row in enumerate(rows) if row is not None] == asking
        first = torch.tensor(rows[asking[0]]["patches"])
        torch.testing.assert_close(first, found.patches[0, asking[0]], atol=1e-5, rtol=0)
        one = predictor.attend(Attend("astronaut", PAINTED, layer, head=1, patch=asking[0]))
        assert one["attention"] == [rows[asking[0]]]


def test_attention_weights_give_the_output_of_the_layer(predictor: Predictor) -> None:
    """Weights times values, projected, are what the layer computes."""
    blocks: Any = predictor.model.blocks
    for block in blocks:
        layer, generator = block.attn, torch.Generator().manual_seed(0)
        x = torch.randn(1, 17, layer.proj.in_features, generator=generator)
        given = (x,) if hasattr(layer, "qkv") else (x, x)
        values = layer._heads(*given, *([None] * 3 if hasattr(layer, "qkv") else []))[2]
        weights = layer.weights(*given)
        torch.testing.assert_close(layer.proj((weights @ values).transpose(1, 2).flatten(2)), layer(*given))


def test_masks_are_drawn_as_in_training_and_by_seed(predictor: Predictor) -> None:
    blocks = [predictor.mask(Mask(seed=seed)) for seed in range(6)]
    assert len({tuple(mask) for mask in blocks}) > 1
    assert {len(mask) for mask in blocks} == {round(0.4 * 16)}
    assert predictor.mask(Mask(seed=3)) == blocks[3]
    random = predictor.mask(Mask(draw="random", ratio=0.5))
    assert len(random) == Random(0.5).count((4, 4))
    assert predictor.mask(Mask(patches=(7, 3, 3))) == [3, 7]
    with pytest.raises(UsageError, match="patch \\[16\\] of a grid of 4 x 4"):
        predictor.mask(Mask(patches=(16,)))


def test_nearest_codes_are_ordered_by_their_decoded_patches(predictor: Predictor) -> None:
    assert predictor.tokenizer is not None
    found = predictor.nearest_codes(3, 5)
    tiles = torch.stack(prototypes(predictor.tokenizer, torch.arange(16), CPU)).flatten(1)
    distance = (tiles - tiles[3]).square().mean(1).sqrt()
    assert [code["code"] for code in found["nearest"]] == [n for n in distance.argsort(stable=True).tolist() if n != 3][
        :5
    ]
    assert found["nearest"][0]["distance"] == pytest.approx(float(distance.sort().values[1]), abs=1e-6)
    with pytest.raises(UsageError, match="code 16 of 16"):
        predictor.nearest_codes(16, 5)


def test_a_model_of_pixels_says_that_it_has_no_tokens(pixels: Predictor) -> None:
    assert isinstance(pixels.target, Pixels)
    found = pixels.predict(Predict("astronaut", PAINTED, samples=2))
    assert (found["tokens"], found["entropy"], found["guesses"], found["samples"]) == (None, None, [], [])
    assert "predicts pixels" in found["note"]
    expected = paint(pixels.model, pixels.target, batch_of(pixels, "astronaut", MASKED), CPU)
    np.testing.assert_array_equal(pixels_of(found["pictures"]["predicted"]), to_pixels(expected)[0])
    whole = pixels.predict(Predict("astronaut", Mask(patches=())))
    assert whole["pictures"]["predicted"] == whole["pictures"]["original"]
    assert pixels.facts()["vocabulary"] is None
    with pytest.raises(UsageError, match="no codes"):
        pixels.nearest_codes(0, 5)


def test_an_image_that_is_given_is_seen_as_its_square_is(predictor: Predictor) -> None:
    file = io.BytesIO()
    picture(1, across=True, side=40).save(file, "PNG")
    given = base64.b64encode(file.getvalue()).decode()
    square = predictor.decoded(file.getvalue(), None)
    assert square.shape == (16, 16, 3)
    small = io.BytesIO()
    Image.fromarray(square).save(small, "PNG")
    again = "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
    assert predictor.predict(Predict(given, PAINTED)) == predictor.predict(Predict(again, PAINTED))


def test_what_is_no_image_or_too_large_is_refused(predictor: Predictor) -> None:
    with pytest.raises(DataError, match="neither a name of /api/model nor base64"):
        predictor.picture("../../etc/passwd")
    with pytest.raises(DataError, match="not an image in a format smalti knows"):
        predictor.picture(base64.b64encode(b"hello, hello").decode())
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    with pytest.raises(DataError, match=f"8000 x 8000 pixels, above the limit of {MAX_PIXELS}"):
        predictor.decoded(bomb.getvalue(), None)


def test_facts_say_what_the_model_is(predictor: Predictor) -> None:
    facts = predictor.facts()
    assert facts["grid"] == [4, 4]
    assert facts["vocabulary"] == 16
    assert facts["patch_size"] == 4
    decoders = [layer["name"] for layer in facts["layers"] if layer["name"].startswith("decoder")]
    assert bool(decoders) == (facts["decoder"] == "cross-attention")
    assert {"astronaut", "coffee", "rocket"} <= {image["name"] for image in facts["images"]}
