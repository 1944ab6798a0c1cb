"""Photographs at 112 x 112: 14 x 14 visual tokens of 1024.

Hardware: two CPU cores. Time: 45 minutes.
"""

from smalti.data.load import Data
from smalti.data.views import RandomResizedCrop
from smalti.runs.train_tokenizer import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.training.loop import Plan
from smalti.training.objectives import Relaxation
from smalti.training.optim import AdamW


def train_tokenizer() -> TrainTokenizer:
    """A discrete VAE with a token for every 8 x 8 pixels."""
    return TrainTokenizer(
        data=Data(channels=3, side=112),
        tokenizer=DVAE(vocab_size=1024, stride=8, in_chans=3, width=128, depth=3),
        relaxation=Relaxation(beta=1.0, beta_ramp=0.2, spread=1.0),
        crop=RandomResizedCrop(scale=(0.5, 1.0)),
        optimiser=AdamW(lr=4e-3, end_lr=4e-5, warmup_ratio=0.05, betas=(0.9, 0.99), weight_decay=1e-4, clip_grad=1.0),
        plan=Plan(steps=10000, batch_size=64),
    )
