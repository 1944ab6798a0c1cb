"""The discrete VAE of DALL-E as it was trained: 53.8 M + 43.8 M parameters, 256 x 256 pixels, 32 x 32 tokens of 8192.

Source: Ramesh et al., Zero-Shot Text-to-Image Generation (DALL-E), 2021, appendix A; openai/DALL-E, issues 1 and 8.
Hardware: 64 V100-16GB in the paper, with 250 M images. Time: 3 M steps; a CPU makes one in about ten minutes.
Expected: the public tokenizer, whose figures its authors do not state; `smalti import` brings its weights.

From fewer images and hours the recipes `small`, `tiny` and `nano` get further: they start from k-means on patches, this
one from random weights.

Differs: gradients are clipped at a norm of 1; views are scaled by bicubic interpolation, not by area.
"""

from smalti.data.load import Data
from smalti.data.transforms.views import SquareCrop
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dalle import DallE
from smalti.training.objectives import Relaxation
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan

STEPS, ANNEALED, DECAYED, RAMPED = 3_000_000, 150_000, 1_200_000, 5_000
"""Steps: all, until the last temperature, until the last learning rate, until the whole KL."""


def train_tokenizer() -> TrainTokenizer:
    """A token for every 8 x 8 pixels; `--data.side 112` gives the 14 x 14 of BEiT."""
    return TrainTokenizer(
        data=Data(channels=3, side=256, memory="stream", full_decode=True),
        tokenizer=DallE(),
        relaxation=Relaxation(
            beta=6.6,
            beta_ramp=RAMPED / STEPS,
            beta_schedule="cosine",
            temperature=(1.0, 1 / 16),
            anneal_ratio=ANNEALED / STEPS,
        ),
        crop=SquareCrop(scaled=(9 / 8, 12 / 8)),
        optimiser=Optimiser(
            lr=1e-4,
            end_lr=1.25e-6,
            warmup_ratio=0.0,
            decay_ratio=DECAYED / STEPS,
            weight_decay=1e-4,
            clip_grad=1.0,
        ),
        plan=Plan(steps=STEPS, batch_size=512, log_every=100, save_every=10_000),
        init_images=0,
        ema_decay=0.999,
    )
