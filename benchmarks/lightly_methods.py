"""MAE and SimMIM as benchmarks of lightly use its parts (benchmarks/imagenet/vitb16/mae.py and simmim.py there).

They have the encoder of our rows of CIFAR-10 in timm's code, and see the same images in the same order.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.scheduler import cosine_warmup_schedule
from pretrain_cifar10 import configuration
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.data.load import InMemoryData
from smalti.data.loader import InMemoryViewSource, Loader, Sampler
from smalti.data.transforms.views import TwoViews
from smalti.training.checkpoint import FOLDER as CHECKPOINTS
from smalti.training.checkpoint import read_checkpoint, write_checkpoint
from smalti.training.muon import MuonAdamW

OURS = configuration(Path(), "", Path())
VIEWS = TwoViews(OURS.crop, OURS.backbone.img_size)
MEAN, STD = tuple(IMAGENET_NORMALIZE["mean"]), tuple(IMAGENET_NORMALIZE["std"])
BACKBONE = replace(OURS.backbone, mean=MEAN, std=STD)
BATCH = OURS.plan.batch_size
SEED, LOG_EVERY, _SAVE_EVERY = 0, 50, 100
_PIXELS = 3 * BACKBONE.patch_size**2


class Peer(nn.Module):
    """What both methods have in common: `backbone`, which is kept, and `forward` from images to a guess.

    `forward` returns what is predicted at masked tokens, and which these are: B K P and B K, counted with [S]. `masked`
    is their share.
    """

    masked: float

    def __init__(self) -> None:
        super().__init__()
        size = {name: getattr(BACKBONE, name) for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
        vit = TimmViT(**size, num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)


class MAE(Peer):
    """The encoder sees a quarter of the patches, a decoder puts mask tokens into the places of the others.

    Its decoder has 512 channels, 8 blocks and 16 heads for an encoder of 768 and 12: here in the same proportion.
    """

    def __init__(self, depth: int = 4, masked: float = 0.75, width: int = 96, num_heads: int = 3) -> None:
        super().__init__()
        self.masked, self.depth = masked, depth
        num_patches = self.backbone.vit.patch_embed.num_patches
        self.decoder_embed = nn.Linear(BACKBONE.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(num_patches, width, depth, num_heads)
        self.head = nn.Linear(width, _PIXELS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        keep, masked = utils.random_token_mask(size, mask_ratio=self.masked)
        seen = self.decoder_embed(self.backbone.encode(images, idx_keep=keep))
        blank = seen.new_zeros(*size, seen.shape[-1])
        decoded = self.decoder(utils.set_at_index(blank, keep, seen), idx_mask=masked)
        return self.head(utils.get_at_index(decoded, masked)), masked


class SimMIM(Peer):
    """The encoder sees mask tokens in squares of 2 x 2 patches, 10 of 16; one linear layer predicts."""

    def __init__(self, masked: float = 0.6) -> None:
        super().__init__()
        self.masked = masked
        self.head = nn.Linear(BACKBONE.embed_dim, _PIXELS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        _, masked = utils.random_grid_token_mask(size, mask_ratio=self.masked, grid_size=2)
        return self.head(utils.get_at_index(self.backbone.encode(images, idx_mask=masked), masked)), masked


@dataclass(frozen=True)
class Method:
    """A network, its loss, and how lightly trains it.

    Attributes:
        lr: at a batch of 256 images, used in proportion.
        warmup: share of the steps. lightly warms up for 40 (10) epochs, whatever the length, and this run has 6: the
            share is that of the paper's 800 (of its 100).
        normalise: predict each patch less its mean, divided by its deviation, instead of pixels.
        muon: update the matrices of blocks, of the decoder too, by smalti's Muon.
    """

    build: Callable[[], Peer]
    error: nn.Module
    lr: float
    betas: tuple[float, float]
    warmup: float
    normalise: bool = False
    muon: bool = False


THEIRS = {
    "mae": Method(MAE, nn.MSELoss(), lr=1.5e-4, betas=(0.9, 0.95), warmup=0.05),
    "simmim": Method(SimMIM, nn.L1Loss(), lr=1e-4, betas=(0.9, 0.999), warmup=0.1),
}
METHODS = THEIRS | {f"{name}-our-settings": replace(m, lr=4e-3, normalise=True) for name, m in THEIRS.items()}
"""As documented, and with the learning rate (2e-3 at a batch of 128) and the target of our rows that predict pixels."""


class Training:
    """A method in training for so many steps in all, which can be saved after any of them.

    Attributes:
        done: steps so far.
        losses: of each of them.
        seconds: of processor time that they took.
    """

    def __init__(
        self, method: Method, images: InMemoryData, steps: int, compute: Compute, compiled: bool, seed: int = SEED
    ) -> None:
        torch.manual_seed(seed)
        self.method, self.steps, self.compute, self.seed = method, steps, compute, seed
        self.model = method.build().to(compute.device)
        self.network = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizer = optimizer_of(self.model, method)
        self.batches = Loader(InMemoryViewSource(images.train, VIEWS), Sampler(len(images.train), BATCH, seed))
        self.mean, self.std = (torch.tensor(value, device=compute.device)[:, None, None] for value in (MEAN, STD))
        self.done, self.losses, self.seconds = 0, list[float](), 0.0

    def step(self) -> None:
        """Do the next step."""
        began = time.process_time()
        torch.manual_seed(self.seed + self.done)  # lightly draws its masks from the global state
        for group in self.optimizer.param_groups:
            group["lr"] = lr_of(self.method, self.done, self.steps)
        pixels = (self.batches(self.done).image.to(self.compute.device) - self.mean) / self.std
        with self.compute.autocast():
            predicted, masked = self.network(pixels)
        target = utils.get_at_index(utils.patchify(pixels, BACKBONE.patch_size), masked - 1)
        target = utils.normalize_mean_var(target) if self.method.normalise else target
        loss = self.method.error(predicted.float(), target)
        self.optimizer.zero_grad()
        loss.backward()
        with self.compute.autocast():
            self.optimizer.step()
        self.done += 1
        self.losses.append(loss.item())
        self.seconds += time.process_time() - began

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        moments = self.optimizer.state_dict()["state"]
        state = {f"{number}.{name}": value for number, of in moments.items() for name, value in of.items()}
        spent = {"losses": torch.tensor(self.losses), "seconds": torch.tensor(self.seconds, dtype=torch.float64)}
        write_checkpoint(folder, self.done, self.model.state_dict(), state | spent)

    def load(self, folder: Path) -> None:
        """Go on from the newest checkpoint."""
        found = read_checkpoint(folder)
        self.model.load_state_dict(found.model)
        state, moments = dict(found.state), dict[int, dict[str, Tensor]]()
        self.done, self.losses, self.seconds = found.step, state.pop("losses").tolist(), state.pop("seconds").item()
        for name, value in state.items():
            number, kind = name.split(".")
            moments.setdefault(int(number), {})[kind] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})


def pretrain(
    method: Method,
    images: InMemoryData,
    steps: int,
    folder: Path,
    compute: Compute,
    compiled: bool = False,
    seed: int = SEED,
) -> Training:
    """Train to the end, or go on in `folder` with what was cut off."""
    training = Training(method, images, steps, compute, compiled, seed)
    if (folder / CHECKPOINTS).exists():
        training.load(folder)
    while training.done < steps:
        training.step()
        if training.done % LOG_EVERY == 0 or training.done == steps:
            recent = training.losses[-LOG_EVERY:]
            print(f"step {training.done} of {steps}, loss {sum(recent) / len(recent):.4f}", flush=True)
        if training.done % _SAVE_EVERY == 0:
            training.save(folder)
    return training


def about(method: Method) -> dict[str, Any]:
    """The settings of a method."""
    network = method.build()
    parts = {"network": type(network).__name__, "masked": network.masked, "error": type(method.error).__name__}
    if isinstance(network, MAE):
        parts |= {"decoder_depth": network.depth}
    parts |= {"normalise": method.normalise, "lr": method.lr * BATCH / 256, "betas": method.betas}
    parts |= {"muon": True} if method.muon else {}
    return parts | {"warmup": method.warmup, "batch_size": BATCH}


def optimizer_of(model: Peer, method: Method) -> torch.optim.Optimizer:
    """AdamW, or Muon and AdamW; biases and norms do not decay."""
    decayed, others = utils.get_weight_decay_parameters([model])
    blocks = {p for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2} if method.muon else set()
    groups = [{"params": [p for p in decayed if p not in blocks], "weight_decay": 0.05}]
    adamw = torch.optim.AdamW([*groups, {"params": others, "weight_decay": 0.0}], betas=method.betas)
    matrices = [p for p in model.parameters() if p in blocks]
    return MuonAdamW([{"params": matrices, "lr": 0.0, "weight_decay": 0.05}], adamw) if method.muon else adamw


def lr_of(method: Method, step: int, steps: int) -> float:
    """The learning rate of a step: up from 0, then half a cosine down to a thousandth."""
    peak = method.lr * BATCH / 256
    return cosine_warmup_schedule(step, steps, peak, 1e-3 * peak, int(method.warmup * steps), warmup_start_value=0.0)
