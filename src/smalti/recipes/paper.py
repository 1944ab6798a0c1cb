"""BEiT-B/16 on ImageNet-1K as the paper prints it: 800 epochs of 1.28 million images.

Source: BEiT §2.5 and §3.1; the tokenizer as DALL-E's, appendix A.2 (the paper uses the published one: `smalti import`).
Hardware: 16 V100 of 32 GB, about 5 days for stage two; with fewer, `--plan.accumulate N` splits the batch of 2048.
Expected: ImageNet-1K top-1 83.2 % at 224 x 224 after fine-tuning, as published; not repeated here.
Differs: clipping at 3.0 and a last learning rate of 1e-5 come from the released code. Masks hide exactly 75 patches of
    196: the paper says at most 75 in prose, and hides 79 or more in algorithm 1.
"""

from smalti.data.load import Data
from smalti.data.views import ColorJitter, RandomResizedCrop
from smalti.functional.masking import Blockwise
from smalti.models.vit import ViT
from smalti.runs.pretrain import Pretrain
from smalti.runs.train_tokenizer import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.training.loop import Plan
from smalti.training.objectives import Relaxation
from smalti.training.optim import AdamW

TOKENIZER_STEPS, ANNEALED, DECAYED, RAMPED = 3_000_000, 150_000, 1_200_000, 5_000
"""Steps of DALL-E's tokenizer: all, until the last temperature, until the last learning rate, until the whole KL."""


def train_tokenizer() -> TrainTokenizer:
    """8192 visual tokens, one for every 8 x 8 of 112 x 112 pixels, by DALL-E's schedules.

    Differs: 112 pixels, as BEiT's tokenizer sees them, in the place of 256; crops of any shape.
    """
    return TrainTokenizer(
        data=Data(channels=3, side=112, memory="stream"),
        tokenizer=DVAE(vocab_size=8192, stride=8, in_chans=3, width=256, depth=2),
        relaxation=Relaxation(
            beta=6.6,
            beta_ramp=RAMPED / TOKENIZER_STEPS,
            temperature=(1.0, 1 / 16),
            anneal_ratio=ANNEALED / TOKENIZER_STEPS,
        ),
        crop=RandomResizedCrop(),
        optimiser=AdamW(
            lr=1e-4,
            end_lr=1.25e-6,
            warmup_ratio=0.0,
            decay_ratio=DECAYED / TOKENIZER_STEPS,
            weight_decay=1e-4,
            clip_grad=1.0,
        ),
        plan=Plan(steps=TOKENIZER_STEPS, batch_size=512, log_every=100, save_every=10_000),
        ema_decay=0.999,
    )


def pretrain() -> Pretrain:
    """ViT-B/16, learned positions, uniform initialisation; 625 steps an epoch."""
    return Pretrain(
        data=Data(channels=3, side=224, memory="stream"),
        backbone=ViT(drop_path_rate=0.1, init="uniform", pos_init="uniform"),
        masking=Blockwise(ratio=75 / 196),
        crop=RandomResizedCrop(),
        jitter=ColorJitter(0.4, 0.4, 0.4),
        optimiser=AdamW(
            lr=1.5e-3,
            end_lr=1e-5,
            lr_batch_size=2048,
            warmup_ratio=10 / 800,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            clip_grad=3.0,
        ),
        plan=Plan(steps=500_000, batch_size=2048, log_every=100, save_every=2500),
    )
