"""The objective on label maps: a mean over pixels that are not void, exact however they are spread."""

from dataclasses import replace

import pytest
import torch

from smalti.core.contracts import Batch
from smalti.functional.losses import pixel_cross_entropy
from smalti.functional.metrics import VOID
from smalti.models.segmenter import MultiLevel, build_segmenter
from smalti.models.vit import ViT
from smalti.training.objectives import Segment
from smalti.training.trainer import mean_metrics, sum_outputs

VIT = ViT(img_size=(8, 8), patch_size=4, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.0, init="xavier")
HEAD, STEP = MultiLevel(width=8), torch.tensor(0)


def batch() -> Batch:
    """Four images; of the first only one pixel has a class."""
    rng = torch.Generator().manual_seed(0)
    label_map = torch.randint(0, 3, (4, 8, 8), generator=rng, dtype=torch.uint8)
    label_map[0] = VOID
    label_map[0, 3, 3] = 2
    label_map[2, :5] = VOID
    image = torch.rand(4, 3, 8, 8, generator=rng)
    return Batch(image, torch.arange(4), torch.arange(4), label_map=label_map)


def test_the_loss_is_the_mean_over_all_pixels_with_a_class() -> None:
    objective, whole = Segment(build_segmenter(VIT, 3, HEAD)), batch()
    assert whole.label_map is not None
    with torch.no_grad():
        output, scores = objective(whole, STEP), objective.model(whole.image)
    nats, count = pixel_cross_entropy(scores, whole.label_map)
    assert (float(output.loss_sum), float(output.weight)) == (float(nats), float(count))
    known = whole.label_map != VOID
    right = (scores.argmax(1) == whole.label_map)[known]
    assert mean_metrics(output)["pixel_accuracy"] == pytest.approx(float(right.float().mean()))


def test_parts_of_a_batch_have_the_mean_of_the_whole() -> None:
    objective, whole = Segment(build_segmenter(VIT, 3, HEAD)), batch()
    parts = sum_outputs([objective(part, STEP) for part in whole.split(4)])
    assert mean_metrics(parts) == pytest.approx(mean_metrics(objective(whole, STEP)), rel=1e-5)
    each = [mean_metrics(objective(part, STEP))["loss"] for part in whole.split(4)]
    assert sum(each) / 4 != pytest.approx(mean_metrics(parts)["loss"], rel=1e-3), "a mean of means is another number"


def test_void_alone_in_a_batch_costs_nothing() -> None:
    only_void = replace(batch(), label_map=torch.full((4, 8, 8), VOID, dtype=torch.uint8))
    assert mean_metrics(Segment(build_segmenter(VIT, 3, HEAD))(only_void, STEP)) == {"loss": 0.0, "pixel_accuracy": 0.0}


def test_the_auxiliary_head_adds_its_share() -> None:
    model = build_segmenter(VIT, 3, replace(HEAD, auxiliary=0.4))
    whole = batch()
    assert whole.label_map is not None
    with torch.no_grad():
        main, other = (pixel_cross_entropy(scores, whole.label_map)[0] for scores in model.all_scores(whole.image))
        loss = Segment(model, 0.4)(whole, STEP).loss_sum
    assert float(loss) == pytest.approx(float(main + 0.4 * other), rel=1e-5)


def test_stochastic_depth_is_for_training_only() -> None:
    objective, whole = Segment(build_segmenter(replace(VIT, drop_path_rate=0.9), 3, HEAD)), batch()
    with torch.no_grad():
        losses = [float(objective.train(mode)(whole, STEP).loss_sum) for mode in (True, False, True)]
    assert losses[0] == losses[2] != losses[1]
