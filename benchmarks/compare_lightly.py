"""MAE and SimMIM by the modules of lightly, pretrained on what our CIFAR-10 study sees and measured in the same way.

    python benchmarks/compare_lightly.py --cifar10 FOLDER
    python benchmarks/compare_lightly.py --cifar10 FOLDER --tokenizer RUN --seconds S --tokenizer-seconds T

FOLDER holds train/ and test/. A cell is one pretraining, a file of docs/results/cifar10/peers; finished ones are left
alone, and one that was cut off goes on. The first command runs the cells that see as many images as our rows. The
second also times our step beside theirs, where that has not been done (step-seconds.json), and runs those cells that
take as much processor time as our row of tokens (S seconds), and as that row and its tokenizer together (S + T). What
lightly does is written with its own parts, as its benchmarks use them (benchmarks/imagenet/vitb16/mae.py and simmim.py
there).
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import lightly
import timm
import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.scheduler import cosine_warmup_schedule
from pretrain_cifar10 import configuration
from safetensors.torch import load_file, save_file
from study import Places, Row, go_on
from study_cifar10 import STUDY
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from smalti.core.compute import Compute, choose_compute
from smalti.core.files import write_json
from smalti.core.log import Log
from smalti.data.load import Images, read_source
from smalti.data.loader import Loader, ResidentGallery
from smalti.data.open import open_stored
from smalti.data.order import Order
from smalti.data.views import TwoViews
from smalti.models.vit import VisionTransformer
from smalti.runs.evaluate import battery
from smalti.runs.finetune import main as finetune
from smalti.runs.pretrain import prepare
from smalti.runs.train_tokenizer import load_tokenizer
from smalti.training.checkpoint import FOLDER as CHECKPOINTS
from smalti.training.checkpoint import read_checkpoint, write_checkpoint

HOME = Path(__file__).parent.parent / "docs" / "results" / "cifar10" / "peers"
OURS = configuration(Path(), "", Path())
VIEWS = TwoViews(OURS.crop, OURS.backbone.img_size)
MEAN, STD = tuple(IMAGENET_NORMALIZE["mean"]), tuple(IMAGENET_NORMALIZE["std"])
BACKBONE = replace(OURS.backbone, mean=MEAN, std=STD)
BATCH = OURS.plan.batch_size
_SEED, _LOG_EVERY, _SAVE_EVERY = 0, 50, 100
_PIXELS = 3 * BACKBONE.patch_size**2


class Peer(nn.Module):
    """What both methods have in common: `backbone`, which is kept, and `forward` from images to a guess.

    `forward` returns what is predicted at hidden tokens, and which these are: B K P and B K, counted with [S].
    """

    def __init__(self) -> None:
        super().__init__()
        size = {name: getattr(BACKBONE, name) for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
        vit = TimmViT(**size, num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)


class MAE(Peer):
    """The encoder sees a quarter of the patches, a decoder puts mask tokens into the places of the others.

    Its decoder has 512 channels, 8 blocks and 16 heads for an encoder of 768 and 12: here in the same proportion.
    """

    def __init__(self, width: int = 96, depth: int = 4, num_heads: int = 3) -> None:
        super().__init__()
        num_patches = self.backbone.vit.patch_embed.num_patches
        self.decoder_embed = nn.Linear(BACKBONE.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(num_patches, width, depth, num_heads)
        self.head = nn.Linear(width, _PIXELS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        keep, hidden = utils.random_token_mask(size, mask_ratio=0.75)
        seen = self.decoder_embed(self.backbone.encode(images, idx_keep=keep))
        blank = seen.new_zeros(*size, seen.shape[-1])
        decoded = self.decoder(utils.set_at_index(blank, keep, seen), idx_mask=hidden)
        return self.head(utils.get_at_index(decoded, hidden)), hidden


class SimMIM(Peer):
    """The encoder sees mask tokens in squares of 2 x 2 patches, 10 of 16; one linear layer predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(BACKBONE.embed_dim, _PIXELS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(images), self.backbone.sequence_length)
        _, hidden = utils.random_grid_token_mask(size, mask_ratio=0.6, grid_size=2)
        return self.head(utils.get_at_index(self.backbone.encode(images, idx_mask=hidden), hidden)), hidden


@dataclass(frozen=True)
class Method:
    """A network, its loss, and how lightly trains it.

    Attributes:
        lr: at a batch of 256 images, used in proportion.
        warmup: share of the steps. lightly warms up for 40 (10) epochs, whatever the length, and this run has 6: the
            share is that of the paper's 800 (of its 100).
        normalise: predict each patch less its mean, divided by its deviation, instead of pixels.
    """

    build: type[Peer]
    error: nn.Module
    lr: float
    betas: tuple[float, float]
    warmup: float
    normalise: bool = False


_THEIRS = {
    "mae": Method(MAE, nn.MSELoss(), lr=1.5e-4, betas=(0.9, 0.95), warmup=0.05),
    "simmim": Method(SimMIM, nn.L1Loss(), lr=1e-4, betas=(0.9, 0.999), warmup=0.1),
}
METHODS = _THEIRS | {f"{name}-our-settings": replace(m, lr=4e-3, normalise=True) for name, m in _THEIRS.items()}
"""As documented, and with the learning rate (2e-3 at a batch of 128) and the target of our rows that predict pixels."""
BUDGETS = ("equal-images", "equal-time", "equal-time-both-stages")
CELLS = {f"{method}-{budget}": (method, budget) for budget in BUDGETS for method in METHODS}


class Training:
    """A method in training for so many steps in all, which can be saved after any of them.

    Attributes:
        done: steps so far.
        losses: of each of them.
        seconds: of processor time that they took.
    """

    def __init__(self, method: Method, images: Images, steps: int, compute: Compute, compiled: bool) -> None:
        torch.manual_seed(_SEED)
        self.method, self.steps, self.compute = method, steps, compute
        self.model = method.build().to(compute.device)
        self.network = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizer = adamw(self.model, method)
        self.batches = Loader(ResidentGallery(images.train, VIEWS), Order(len(images.train), BATCH, _SEED))
        self.mean, self.std = (torch.tensor(value, device=compute.device)[:, None, None] for value in (MEAN, STD))
        self.done, self.losses, self.seconds = 0, list[float](), 0.0

    def step(self) -> None:
        """Do the next step."""
        began = time.process_time()
        torch.manual_seed(_SEED + self.done)  # lightly draws its masks from the global state
        for group in self.optimizer.param_groups:
            group["lr"] = lr_of(self.method, self.done, self.steps)
        pixels = (self.batches(self.done).image.to(self.compute.device) - self.mean) / self.std
        with self.compute.autocast():
            predicted, hidden = self.network(pixels)
        target = utils.get_at_index(utils.patchify(pixels, BACKBONE.patch_size), hidden - 1)
        target = utils.normalize_mean_var(target) if self.method.normalise else target
        loss = self.method.error(predicted.float(), target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1
        self.losses.append(loss.item())
        self.seconds += time.process_time() - began

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        moments = self.optimizer.state_dict()["state"]
        state = {f"{number}.{name}": value for number, of in moments.items() for name, value in of.items()}
        spent = {"losses": torch.tensor(self.losses), "seconds": torch.tensor(self.seconds, dtype=torch.float64)}
        write_checkpoint(folder, self.done, self.model, state | spent)

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
    method: Method, images: Images, steps: int, folder: Path, compute: Compute, compiled: bool = False
) -> Training:
    """Train to the end, or go on in `folder` with what was cut off."""
    training = Training(method, images, steps, compute, compiled)
    if (folder / CHECKPOINTS).exists():
        training.load(folder)
    while training.done < steps:
        training.step()
        if training.done % _LOG_EVERY == 0 or training.done == steps:
            recent = training.losses[-_LOG_EVERY:]
            print(f"step {training.done} of {steps}, loss {sum(recent) / len(recent):.4f}", flush=True)
        if training.done % _SAVE_EVERY == 0:
            training.save(folder)
    return training


def step_seconds(tokenizer: str, data: Path, compute: Compute, compiled: bool, rounds: int) -> dict[str, float]:
    """Processor time of a step of our row of tokens and of each method, in turn: the median over rounds.

    In turn, because on a busy machine the same step takes up to twice the time that it takes on a quiet one.
    """
    config = replace(configuration(data, tokenizer, Path()), compile="on" if compiled else "off")
    images = config.data.load(Log())
    trainer, batches = prepare(config, images, load_tokenizer(tokenizer, compute), compute)
    steps: dict[str, Callable[[], Any]] = {"ours": lambda: trainer.train_step(batches(trainer.step), compute)}
    steps |= {name: Training(method, images, rounds + 2, compute, compiled).step for name, method in _THEIRS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            began = time.process_time()
            step()
            times[name].append(time.process_time() - began)
    return {name: median(taken[2:]) for name, taken in times.items()}


def adamw(model: Peer, method: Method) -> torch.optim.AdamW:
    """Biases and norms do not decay."""
    decayed, others = utils.get_weight_decay_parameters([model])
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=method.betas)


def lr_of(method: Method, step: int, steps: int) -> float:
    """The learning rate of a step: up from 0, then half a cosine down to a thousandth."""
    peak = method.lr * BATCH / 256
    return cosine_warmup_schedule(step, steps, peak, 1e-3 * peak, int(method.warmup * steps), warmup_start_value=0.0)


def read_encoder(path: Path) -> VisionTransformer:
    """Its weights in our network, which has timm's names and computes the same."""
    backbone = BACKBONE.build()
    backbone.load_state_dict(load_file(path))
    return backbone.eval()


def fine_tune(folder: Path, data: Path, steps: int, compute: Compute) -> dict[str, Any]:
    """Fine-tuning with a tenth of the labels, those of our rows and with their recipe; one that was cut off goes on."""
    init, out = str(folder / "encoder.safetensors"), folder / "finetune-10pct-0"
    places, study = Places(data, Path(), Path()), replace(STUDY, steps=steps)
    config = study.finetuning(init, out, places, share=0.1, seed=_SEED, layer_decay=Row().layer_decay)
    return go_on(replace(config, backbone=replace(config.backbone, mean=MEAN, std=STD)), finetune, compute)


def run(
    method: Method, steps: int, folder: Path, data: Path, compute: Compute, compiled: bool, finetune_steps: int
) -> dict[str, Any]:
    """Pretrain a cell, or take its weights where that is done, and measure it as our rows are."""
    images, done = replace(OURS.data, path=str(data / "train")).load(Log()), folder / "pretrain.json"
    if not done.exists():
        training = pretrain(method, images, steps, folder, compute, compiled)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(training.model.backbone.vit.state_dict(), folder / "encoder.safetensors")
        means = [part.mean().item() for part in torch.tensor(training.losses).split(_LOG_EVERY)]
        spent = {"steps": steps, "images": steps * BATCH, "processor_seconds": training.seconds, "losses": means}
        parameters = sum(weight.numel() for weight in training.model.parameters())
        write_json(done, spent | about(method) | {"parameters": parameters, "compiled": compiled})
    test = read_source(open_stored(str(data / "test"), OURS.data.channels), OURS.data, Log())
    encoder = read_encoder(folder / "encoder.safetensors")
    figures = {"frozen": battery(encoder, images.train, test, compute, _SEED, STUDY.protocol).as_dict()}
    figures["finetune-10pct-0"] = fine_tune(folder, data, finetune_steps, compute)
    versions = {"lightly": lightly.__version__, "timm": timm.__version__, "torch": torch.__version__}
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "compute": compute.describe()}
    return json.loads(done.read_text()) | figures | versions | machine


def about(method: Method) -> dict[str, Any]:
    """The settings of a method."""
    parts = {"network": method.build.__name__, "error": type(method.error).__name__, "normalise": method.normalise}
    return parts | {"lr": method.lr * BATCH / 256, "betas": method.betas, "warmup": method.warmup, "batch_size": BATCH}


def steps_of(cell: str, images: int, both_stages: float | None, seconds: Mapping[str, float]) -> int | None:
    """As many images as ours, or as many steps as take the same time.

    Args:
        both_stages: what our row and its tokenizer take, divided by what the row takes alone.
        seconds: of a step, by `step_seconds`; without them there is no equal time.
    """
    (method, budget), ours = CELLS[cell], -(-images // BATCH)
    times = {"equal-images": None, "equal-time": 1.0, "equal-time-both-stages": both_stages}[budget]
    if budget == "equal-images":
        return ours
    if times is None or not seconds:
        return None
    return max(1, round(ours * times * seconds["ours"] / seconds[method.removesuffix("-our-settings")]))


COLUMNS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "images": lambda cell: f"{cell['images']}",
    "seconds of a core": lambda cell: f"{cell['processor_seconds']:.0f}",
    "k-NN": lambda cell: _percent(cell["frozen"]["knn"]),
    "linear probe": lambda cell: _percent(cell["frozen"]["linear"]),
    "of block": lambda cell: f"{cell['frozen']['layer']} ({cell['frozen']['pooling']})",
    "linear, 1 % of labels": lambda cell: _percent(cell["frozen"]["few"]["1 %"]["accuracy"]),
    "linear, 10 %": lambda cell: _percent(cell["frozen"]["few"]["10 %"]["accuracy"]),
    "fine-tuned, 10 %": lambda cell: (
        _percent(cell["finetune-10pct-0"]["test_accuracy"]) if "finetune-10pct-0" in cell else "-"
    ),
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """All finished cells as Markdown."""
    rows = [["", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[name, *(column(cell) for column in COLUMNS.values())] for name, cell in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def finished(home: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of `CELLS`."""
    return {name: json.loads(path.read_text()) for name in CELLS if (path := home / f"{name}.json").exists()}


def main() -> None:
    """Run the cells that are not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs/peers"), help="where encoders are kept")
    parser.add_argument("--out", type=Path, default=HOME, help="where results are written")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="these only; may be given again")
    parser.add_argument("--images", type=int, default=300_000, help="that our rows see")
    parser.add_argument("--tokenizer", help="the run folder of our tokenizer, to time our step beside theirs")
    parser.add_argument("--rounds", type=int, default=40, help="of that timing")
    parser.add_argument("--seconds", type=float, help="of processor time that our row took without its tokenizer")
    parser.add_argument("--tokenizer-seconds", type=float, help="of processor time that its tokenizer took")
    parser.add_argument("--finetune-steps", type=int, default=STUDY.steps, help="with a tenth of the labels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="bf16", help="auto: the faster here")
    parser.add_argument("--no-compile", action="store_true", help="for very short runs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    set_fused_attn(False)
    compute, compiled = choose_compute(precision=given.precision), not given.no_compile
    timed = given.out / "step-seconds.json"
    if given.tokenizer and not timed.exists():
        write_json(timed, step_seconds(given.tokenizer, given.cifar10, compute, compiled, given.rounds))
    both = 1 + given.tokenizer_seconds / given.seconds if given.seconds and given.tokenizer_seconds else None
    seconds = json.loads(timed.read_text()) if timed.exists() else {}
    for name in given.cell or CELLS:
        steps, target = steps_of(name, given.images, both, seconds), given.out / f"{name}.json"
        if steps is not None and not target.exists():
            method = METHODS[CELLS[name][0]]
            folder = given.runs / name
            found = run(method, steps, folder, given.cifar10, compute, compiled, given.finetune_steps)
            write_json(target, found)
    print(table(finished(given.out)))


if __name__ == "__main__":
    main()
