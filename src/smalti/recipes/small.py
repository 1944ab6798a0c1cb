"""Photographs at 112 x 112, 14 x 14 visual tokens, a ViT-S: ten thousand images or more, one GPU or a strong CPU.

Source: BEiT §2.5 with the sizes of ViT-S and the start of the small recipes.
Hardware: 10 GFLOP an image, 2.6e17 in all. At 100 TFLOP/s, a third of what a recent GPU has in bf16, 45 minutes; at 5
    TFLOP/s, a CPU of many cores with bf16 units, 14 hours. Computed; `smalti plan` measures.
Expected: of the tokenizer, after 2 700 steps on 2 500 photographs (45 minutes on one core), 99.5 % of the codes and
    21.8 dB (docs/results/tokenizers).
Measured: not this recipe yet. The network of the CIFAR-10 study has 55.0 % by k-NN and 61.4 % by the linear probe after
    300 000 images; with mask tokens in the encoder 50.5 and 59.0, in nearly twice the time (docs/results/cifar10).
    Positions that start ten times as large were worth 0.9 and 1.3 points more there, and Muon 1.6 and 1.7 points more
    again at the learning rate of AdamW, as here (docs/results/cifar10/ablations, docs/log.md, 2026-11-30).
"""

from dataclasses import replace

from smalti.data.load import Data
from smalti.data.transforms.batch_transforms import Erasing, Mixing
from smalti.data.transforms.randaugment import RandAugment
from smalti.data.transforms.views import NO_JITTER, RandomResizedCrop
from smalti.functional.masking import Random
from smalti.models.decoder import CrossAttention
from smalti.models.vit import ViT
from smalti.runs.classification_task import Classification
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dvae import DVAE
from smalti.training.objectives import Relaxation
from smalti.training.optim import Optimiser
from smalti.training.training_plan import Plan

DATA = Data(channels=3, side=112)


def train_tokenizer() -> TrainTokenizer:
    """A discrete VAE with a token for every 8 x 8 pixels."""
    return TrainTokenizer(
        data=DATA,
        tokenizer=DVAE(vocab_size=1024, stride=8, in_chans=3, width=128, depth=3),
        relaxation=Relaxation(beta=1.0, beta_ramp=0.2, spread=1.0),
        crop=RandomResizedCrop(scale=(0.5, 1.0)),
        optimiser=Optimiser(
            lr=4e-3, end_lr=4e-5, warmup_ratio=0.05, betas=(0.9, 0.99), weight_decay=1e-4, clip_grad=1.0
        ),
        plan=Plan(steps=10000, batch_size=64),
    )


def pretrain() -> Pretrain:
    """A ViT-S of 21 M parameters that sees a quarter of 14 x 14 patches; the tokenizer sees all of them."""
    return Pretrain(
        data=DATA,
        backbone=ViT(
            img_size=(112, 112),
            patch_size=8,
            embed_dim=384,
            depth=12,
            num_heads=6,
            init="xavier",
            pos_init="sincos",
            pos_amplitude=1.0,
        ),
        masking=Random(ratio=0.75),
        decoder=CrossAttention(),
        crop=RandomResizedCrop(scale=(0.2, 1.0)),
        jitter=NO_JITTER,
        optimiser=Optimiser(lr=1.5e-3, lr_batch_size=1024, warmup_ratio=0.05, betas=(0.9, 0.98), matrices="muon"),
        plan=Plan(steps=100_000, batch_size=256),
    )


def finetune() -> Finetune:
    """The ViT-S of `pretrain` with a head over the classes.

    Source: BEiT, appendix, fine-tuning on ImageNet-1K: lr 4e-3 at a batch of 1024, a fifth of the steps as warm-up,
        drop path 0.1, weight decay 0.05, mixup 0.8, CutMix 1.0, RandAugment m9, erasing 0.25, label smoothing 0.1.
    Time: 27 GFLOP an image, 7e16 in all: 12 minutes at 100 TFLOP/s, 4 hours at 5.
    Differs: layer decay 0.75, there 0.65 for a ViT-B; gradients are clipped at a norm of 3, there not at all.
    Measured: not yet.
    """
    return Finetune(
        data=replace(DATA, side=128),
        task=Classification(mixing=Mixing(mixup=0.8, cutmix=1.0)),
        backbone=replace(pretrain().backbone, drop_path_rate=0.1),
        augment=RandAugment(operations=2),
        erasing=Erasing(probability=0.25),
        optimiser=Optimiser(lr=4e-3, end_lr=1e-6, lr_batch_size=1024, warmup_ratio=0.2, layer_decay=0.75),
        plan=Plan(steps=10_000, batch_size=256, save_every=500),
    )
