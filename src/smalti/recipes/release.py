"""BEiT-B/16 on ImageNet-1K as the released code trains it, 800 epochs: stage two of `paper` in the details of the code.

Its tokenizer is the public DALL-E one: `smalti import encoder.pkl decoder.pkl --out MODEL`.

Source: microsoft/unilm, beit, get_started_for_image_classification.md.
Hardware: 16 V100 of 32 GB, about 5 days; with fewer, `--plan.accumulate N` splits the batch of 2048.
Expected: ImageNet-1K top-1 83.2 % at 224 x 224 after fine-tuning, as published; not repeated here.
    By the authors' log 300 epochs end at a loss of 6.30 nats on the images learned from (ln 8192 is 9.01), 5.0 % of the
    masked tokens guessed and a gradient norm of 0.42 (microsoft/unilm, issue 383).
Differs: the first update has 1/6250 of the learning rate where the code has 0, and those after the warm-up have the
    code's rate of the next update. Batches run on into the next epoch, where the code drops the last 1 167 of
    1 281 167 images of each. All other differences: docs/paper-map.md.
"""

from dataclasses import replace

from smalti.data.transforms.views import ColorJitter
from smalti.functional.published_masking import Release
from smalti.models.vit import released
from smalti.recipes import paper
from smalti.runs.pretrain_config import Pretrain


def pretrain() -> Pretrain:
    """Relative positions, LayerScale and masks of at most 75 patches, as in the code.

    Colours are changed before the crop, and pixels are normalised by ImageNet's statistics.
    """
    start = paper.pretrain()
    return replace(
        start,
        backbone=released(start.backbone),
        masking=Release(num_masked=75),
        jitter=ColorJitter(0.4, 0.4, 0.4, before_crop=True),
        normalisation="imagenet",
    )
