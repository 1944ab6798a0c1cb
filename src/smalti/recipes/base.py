"""Photographs at 224 x 224, 14 x 14 visual tokens of a 112-pixel view, a ViT-B/16: a hundred thousand images or more.

Source: BEiT §2.5, at an eighth of its batch and with the learning rate in proportion.
Hardware: one GPU (`--plan.accumulate 4` where its memory is short). 33 GFLOP an image, 1.7e18 in all: 5 hours at 100
    TFLOP/s, a third of what a recent GPU has in bf16. Computed; `smalti plan` measures.
Measured: a step takes 0.25 (AMD) to 0.31 (Intel) of the time of one of transformers' BEiT (docs/results/pretrain-step).
    Accuracy was measured with the network of the CIFAR-10 study only; see `tiny`. AdamW, since an update of Muon costs
    as much as a step of 50 images of this network, whatever the batch size (docs/log.md, 2026-11-30).
"""

from smalti.data.load import Data
from smalti.data.transforms.batch_transforms import Erasing, Mixing
from smalti.data.transforms.randaugment import RandAugment
from smalti.data.transforms.views import ColorJitter, RandomResizedCrop
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


def train_tokenizer() -> TrainTokenizer:
    """A discrete VAE with a token for every 8 x 8 of 112 x 112 pixels."""
    return TrainTokenizer(
        data=Data(channels=3, side=112),
        tokenizer=DVAE(vocab_size=8192, stride=8, in_chans=3, width=192, depth=2),
        relaxation=Relaxation(beta=1.0, beta_ramp=0.2, spread=1.0),
        crop=RandomResizedCrop(scale=(0.2, 1.0)),
        optimiser=Optimiser(
            lr=5e-3, end_lr=5e-5, warmup_ratio=0.05, betas=(0.9, 0.99), weight_decay=1e-4, clip_grad=1.0
        ),
        plan=Plan(steps=20_000, batch_size=64),
    )


def pretrain() -> Pretrain:
    """A ViT-B/16 of 86 M parameters, as printed in the paper, that sees a quarter of the patches.

    Each step predicts half of the others.
    """
    return Pretrain(
        data=Data(channels=3, side=224),
        backbone=ViT(),
        masking=Random(ratio=0.75),
        decoder=CrossAttention(width=512, num_heads=8, predicted=0.5),
        crop=RandomResizedCrop(scale=(0.2, 1.0)),
        jitter=ColorJitter(),
        optimiser=Optimiser(lr=1.5e-3, lr_batch_size=2048, warmup_ratio=0.05),
        plan=Plan(steps=200_000, batch_size=256),
    )


def finetune() -> Finetune:
    """The ViT-B/16 with a head over the classes, as the released code fine-tunes it on ImageNet-1K.

    Source: released code, get_started_for_image_classification.md: lr 4e-3 at a batch of 1024, 100 epochs of which 20
        warm up, layer decay 0.65, drop path 0.1, weight decay 0.05, mixup 0.8, CutMix 1.0;
        its defaults: RandAugment m9, erasing 0.25, label smoothing 0.1, head times 0.001.
    Time: 107 GFLOP an image, 1.4e19 in all: 38 hours at 100 TFLOP/s, a third of what a recent GPU has in bf16.
    Differs: gradients are clipped at a norm of 3, there not at all.
    """
    return Finetune(
        data=Data(channels=3, side=256),
        task=Classification(mixing=Mixing(mixup=0.8, cutmix=1.0)),
        backbone=ViT(drop_path_rate=0.1),
        augment=RandAugment(operations=2),
        erasing=Erasing(probability=0.25),
        optimiser=Optimiser(lr=4e-3, end_lr=1e-6, lr_batch_size=1024, warmup_ratio=0.2, layer_decay=0.65),
        plan=Plan(steps=125_000, batch_size=1024, accumulate=8, save_every=5000),
    )
