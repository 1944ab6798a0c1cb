"""Finite scalar quantisation for small colour images, 32 x 32: 64 visual tokens of 1000.

`--tokenizer.levels 8 8 5 5 5` makes them tokens of 8000.

Hardware: two CPU cores. Time: 15 minutes.
"""

from smalti.data.load import Data
from smalti.data.transforms.views import RandomResizedCrop
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.quantised import FSQ
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan


def train_tokenizer() -> TrainTokenizer:
    """A token for every 4 x 4 pixels."""
    return TrainTokenizer(
        data=Data(channels=3, side=32),
        tokenizer=FSQ(levels=(8, 5, 5, 5), stride=4, in_chans=3, width=64, depth=2),
        crop=RandomResizedCrop(scale=(0.6, 1.0)),
        optimiser=Optimiser(
            lr=6e-3, end_lr=6e-5, warmup_ratio=0.05, betas=(0.9, 0.99), weight_decay=1e-4, clip_grad=1.0
        ),
        plan=Plan(steps=15000, batch_size=64),
    )
