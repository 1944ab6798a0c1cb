"""Small grey pictures, 28 x 28: what `smalti demo` runs on the embedded images.

Hardware: two CPU cores. Time: 10 minutes for both stages with the steps that the demo chooses.
Measured: 2 600 steps of `pretrain` in 159 seconds of a core give 87.5 % by the linear probe and 83.9 % by k-NN; 2 850
    steps with AdamW alone, at its learning rate of 2e-3, in 139 seconds give 86.4 and 82.0 (docs/log.md, 2026-11-30).
"""

from smalti.data.load import Data
from smalti.data.transforms.batch_transforms import Mixing
from smalti.data.transforms.views import NO_JITTER, RandomResizedCrop
from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention
from smalti.models.vit import ViT
from smalti.runs.classification_task import Classification
from smalti.runs.demo import Demo
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.training.objectives import Relaxation
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan

DATA = Data(channels=1, side=28)


def train_tokenizer() -> TrainTokenizer:
    """A discrete VAE with a token for every 4 x 4 pixels."""
    return TrainTokenizer(
        data=DATA,
        tokenizer=DVAE(vocab_size=512, stride=4, in_chans=1, width=64, depth=2),
        relaxation=Relaxation(beta=1.0, beta_ramp=0.2, spread=1.0),
        crop=RandomResizedCrop(scale=(0.6, 1.0)),
        optimiser=Optimiser(
            lr=7e-3, end_lr=7e-5, warmup_ratio=0.05, betas=(0.9, 0.99), weight_decay=1e-4, clip_grad=1.0
        ),
        plan=Plan(steps=1000, batch_size=64),
    )


def pretrain() -> Pretrain:
    """A ViT of 0.2 M parameters that sees a quarter of 7 x 7 patches."""
    return Pretrain(
        data=DATA,
        backbone=ViT(
            img_size=(28, 28),
            patch_size=4,
            in_chans=1,
            embed_dim=64,
            depth=4,
            num_heads=2,
            drop_path_rate=0.0,
            init="xavier",
            pos_init="sincos",
        ),
        masking=Random(ratio=0.75),
        decoder=CrossAttention(),
        crop=RandomResizedCrop(scale=(0.6, 1.0)),
        jitter=NO_JITTER,
        optimiser=Optimiser(
            lr=4e-3, warmup_ratio=0.08, betas=(0.9, 0.98), weight_decay=0.05, clip_grad=3.0, matrices="muon"
        ),
        plan=Plan(steps=2000, batch_size=64),
    )


def finetune() -> Finetune:
    """The backbone of `pretrain`, with a head over the classes. Time: 2 minutes."""
    return Finetune(
        data=DATA,
        task=Classification(mixing=Mixing(mixup=0.2)),
        backbone=pretrain().backbone,
        crop=RandomResizedCrop(scale=(0.6, 1.0)),
        optimiser=Optimiser(
            lr=2e-3, end_lr=1e-6, warmup_ratio=0.1, betas=(0.9, 0.98), weight_decay=0.05, layer_decay=0.75
        ),
        plan=Plan(steps=1000, batch_size=64, save_every=100),
    )


def demo() -> Demo:
    """Both stages on the embedded images."""
    return Demo(tokenizer=train_tokenizer(), pretrain=pretrain())
