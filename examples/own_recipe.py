"""A recipe of your own: functions that compose parts. The command line takes them where it takes a name.

    smalti explain examples/own_recipe.py:pretrain
    smalti train-tokenizer examples/own_recipe.py:train_tokenizer --data ~/Pictures --out runs/tokenizer
    smalti pretrain examples/own_recipe.py:pretrain --data ~/Pictures --tokenizer runs/tokenizer --out runs/beit

Photographs of 96 x 96 pixels, a vector-quantised tokenizer, and BEiT as published in the rest: 40 % masked in blocks,
mask tokens in the encoder. Every field can still be overridden by a flag.
"""

from smalti import Data, Plan, Pretrain, TrainTokenizer, ViT
from smalti.data.transforms.views import ColorJitter, RandomResizedCrop
from smalti.functional.masking import Blockwise
from smalti.models.decoder import Linear
from smalti.tokenizers.quantised import VQ
from smalti.training.optim import Optimiser

DATA = Data(channels=3, side=96)
CROP = RandomResizedCrop(scale=(0.5, 1.0))


def train_tokenizer() -> TrainTokenizer:
    """12 x 12 tokens of 1024 codes, which follow the images by themselves."""
    return TrainTokenizer(
        data=DATA,
        tokenizer=VQ(vocab_size=1024, stride=8, in_chans=3),
        likelihood="mse",
        crop=CROP,
        optimiser=Optimiser(lr=1e-3, warmup_ratio=0.05),
        plan=Plan(steps=3000, batch_size=64),
    )


def pretrain() -> Pretrain:
    """A ViT of 5 M parameters, patches of 8 x 8; hues are left as they are."""
    return Pretrain(
        data=DATA,
        backbone=ViT(img_size=(96, 96), patch_size=8, embed_dim=192, depth=12, num_heads=3, init="xavier"),
        masking=Blockwise(ratio=0.4),
        decoder=Linear(),
        crop=CROP,
        jitter=ColorJitter(brightness=0.2, contrast=0.2, saturation=0.0),
        optimiser=Optimiser(lr=1.5e-3, warmup_ratio=0.05, betas=(0.9, 0.98)),
        plan=Plan(steps=20_000, batch_size=128),
    )
