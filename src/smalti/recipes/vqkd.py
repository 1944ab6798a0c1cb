"""VQ-KD, the tokenizer of BEiT v2: encoder and codebook trained to reconstruct the features of `--tokenizer.teacher`.

The teacher decides size and channels of images, and V is the power of two that leaves 500 tokens of the training images
for each code.

Hardware: any. Time: a step costs a forward pass of the teacher, and training of an encoder as large.
"""

from smalti.data.load import Data
from smalti.data.transforms.views import RandomResizedCrop
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.vqkd import VQKD
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan


def train_tokenizer() -> TrainTokenizer:
    """A token for every patch of `--tokenizer.teacher`."""
    return TrainTokenizer(
        data=Data(),
        tokenizer=VQKD(),
        crop=RandomResizedCrop(scale=(0.08, 1.0)),
        optimiser=Optimiser(
            lr=1e-3, end_lr=1e-5, warmup_ratio=0.05, betas=(0.9, 0.99), weight_decay=1e-4, clip_grad=1.0
        ),
        plan=Plan(steps=15000, batch_size=64),
    )
