"""What a GPU does with smalti, in minutes: is it right, is it fast, does anything wait?

    python scripts/gpu_check.py --minutes 8 --out DIR
    python scripts/gpu_check.py --device cpu --small --out DIR        # the same checks, tiny, where there is no GPU

This needs the checkout with its dependencies; pytest, transformers and timm are used where they are installed. Every
check is a process of its own, so one that fails or hangs costs its own figures alone. After each,
DIR/gpu_check.json and DIR/README.md are written anew: if the time runs out, they have what was found so far. The exit
status is 1 where a check found something wrong.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from smalti.cli import main as smalti  # noqa: E402
from smalti.core.compute import Compute, choose_compute  # noqa: E402
from smalti.core.contracts import Batch  # noqa: E402
from smalti.core.files import write_bytes, write_json  # noqa: E402
from smalti.core.rng import fold, signed  # noqa: E402
from smalti.core.tensors import read_tensors  # noqa: E402
from smalti.data.datasets.dataset import InMemoryDataset  # noqa: E402
from smalti.data.load import Data, TrainingData  # noqa: E402
from smalti.data.tokens import TokenizedBatches, encode, tokenized  # noqa: E402
from smalti.data.transforms.views import NO_JITTER  # noqa: E402
from smalti.functional.masking import Blockwise, Random  # noqa: E402
from smalti.models import vit  # noqa: E402
from smalti.models.cost_estimate import pretraining_multiply_adds, training_memory  # noqa: E402
from smalti.models.decoder import CrossAttention, Linear  # noqa: E402
from smalti.models.vit import ViT  # noqa: E402
from smalti.recipes import small  # noqa: E402
from smalti.runs.pretrain import Pretrain, prepare  # noqa: E402
from smalti.tokenizers.dvae import DVAE  # noqa: E402
from smalti.training.objectives import DiscreteVAEObjective  # noqa: E402
from smalti.training.optim import Optimiser  # noqa: E402
from smalti.training.trainer import Trainer, mean_metrics  # noqa: E402
from smalti.training.training_plan import Plan  # noqa: E402

LINEAR, CROSS = Linear(), CrossAttention(width=512, num_heads=8, predicted=0.5)
_FP32, _BF16 = torch.float32, torch.bfloat16
_LEAST = 15.0
"""Seconds; a check is not begun with less."""


@dataclass
class Found:
    """What a check has found.

    Attributes:
        figures: by name.
        wrong: what should not be, a line each.
        skipped: why it was not done; empty where it was.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""

    def expect(self, name: str, value: float, most: float) -> None:
        """Keep a figure, and say so where it is above its bound."""
        self.figures[name] = value
        if not value <= most:
            self.wrong.append(f"{name} is {value:.3g}, at most {most:g} was expected")


@dataclass(frozen=True)
class Machine:
    """What is checked, and how large the networks and batches are.

    Attributes:
        small: for a test of this script on a processor.
    """

    device: torch.device
    small: bool

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU of CUDA or ROCm."""
        return self.device.type == "cuda"

    @property
    def rounds(self) -> int:
        """Measured calls of each kind."""
        return 2 if self.small else 20

    def backbones(self) -> dict[str, ViT]:
        """The networks whose speed is measured."""
        if self.small:
            return {"tiny": ViT((32, 32), 8, embed_dim=32, depth=2, num_heads=2)}
        return {"base": vit.base(), "large": vit.large()}

    def wait(self) -> None:
        """Until all that was begun on the device has ended."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], rounds: int = 0) -> float:
        """Of one call, the mean over some, after two that are not counted."""
        for _ in range(2):
            call()
        self.wait()
        began, rounds = time.perf_counter(), rounds or self.rounds
        for _ in range(rounds):
            call()
        self.wait()
        return (time.perf_counter() - began) / rounds

    def peak_flops(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second in a large product of matrices."""
        size = 256 if self.small else 8192
        a = torch.randn(size, size, device=self.device, dtype=dtype)
        return 2 * size**3 / self.seconds(lambda: a @ a)


Check: TypeAlias = Callable[[Machine, Path], Found]


@dataclass(frozen=True)
class Training:
    """Pretraining of a network on random images: what makes its steps, and a batch with tokens on the device."""

    trainer: Trainer
    batch: Batch
    compute: Compute

    @staticmethod
    def of(backbone: ViT, decoder: Linear | CrossAttention, rows: int, compute: Compute, compiled: bool) -> "Training":
        """As `smalti pretrain` makes it."""
        side, channels = backbone.img_size[0], backbone.in_chans
        rng = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (rows, channels, side, side), dtype=torch.uint8, generator=rng)
        images = InMemoryDataset(pixels, torch.zeros(rows, dtype=torch.int64))
        config = Pretrain(
            data=Data(side=side),
            backbone=backbone,
            masking=Blockwise(0.4) if isinstance(decoder, Linear) else Random(ratio=0.75),
            decoder=decoder,
            jitter=NO_JITTER,
            plan=Plan(batch_size=rows),
            compile="on" if compiled else "off",
        )
        tokenizer = DVAE(vocab_size=64 if side < 64 else 8192, stride=backbone.patch_size // 2, width=16)
        built = tokenizer.build().to(compute.device).eval().requires_grad_(False)
        trainer, batches = prepare(config, TrainingData(images, images), built, compute)
        trainer.objective.train()
        assert isinstance(batches, TokenizedBatches)
        return Training(trainer, tokenized(batches.batches(0), built, compute), compute)

    def step(self) -> None:
        """One step of training."""
        self.trainer.train_step(self.batch, self.compute, with_metrics=False)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss of the batch, and its gradient by all weights in one vector."""
        output, _ = self.trainer.gradients(self.batch, self.compute)
        gradients = [p.grad.flatten().cpu() for p in self.trainer.objective.model.parameters() if p.grad is not None]
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return mean_metrics(output)["loss"], torch.cat(gradients)


def machine(where: Machine, _: Path) -> Found:
    """The device, versions, and how fast it multiplies matrices."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "processors": os.cpu_count()}
    if where.cuda:
        about = torch.cuda.get_device_properties(where.device)
        found |= {"device": about.name, "capability": f"{about.major}.{about.minor}", "memory": about.total_memory}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    for name, dtype in (("bf16", _BF16), ("fp32", _FP32)):
        found[f"tflops_{name}"] = where.peak_flops(dtype) / 1e12
    return Found(found)


def tests(where: Machine, _: Path) -> Found:
    """The tests that are skipped where there is no GPU."""
    if not where.cuda or find_spec("pytest") is None:
        return Found(skipped="no GPU" if not where.cuda else "pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "tests/training/test_cuda.py", "tests/core/test_compute.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return Found({"summary": lines[-1] if lines else ""}, failed if done.returncode else [])


def numbers(where: Machine, _: Path) -> Found:
    """Loss and gradient on the device against those of a processor in float32; compiled against not."""
    found, processor = Found(), Compute(torch.device("cpu"), _FP32)
    sizes = {"img_size": (64, 64), "embed_dim": 64, "depth": 3, "num_heads": 2, "drop_path_rate": 0.1}
    for decoder, positions in ((LINEAR, "absolute"), (LINEAR, "shared_relative"), (CROSS, "block_relative")):
        backbone = ViT(patch_size=8, positions=positions, **sizes)  # type: ignore[arg-type]
        name = f"{type(decoder).__name__}, {positions}"
        reference = Training.of(backbone, decoder, 8, processor, False)
        loss, gradient = reference.loss_and_gradient()
        for dtype, loss_bound, gradient_bound in ((_FP32, 1e-3, 1e-2), (_BF16, 2e-2, 0.1)):
            for compiled in (False, True)[: 1 if where.small else 2]:
                made = Training.of(backbone, decoder, 8, Compute(where.device, dtype), compiled)
                own = replace(made, batch=reference.batch.to(where.device))  # tokens differ by their rounding
                here, there = own.loss_and_gradient()
                way = f"{name}, {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"
                found.expect(f"loss, {way}", abs(here - loss) / loss, loss_bound)
                found.expect(f"gradient, {way}", float((there - gradient).norm() / gradient.norm()), gradient_bound)
    return found


def resume(where: Machine, home: Path) -> Found:
    """A run that goes on from its checkpoint of half the way against one that never stopped; and two equal runs."""
    flags = ["--target", "pixels", "--data", "embedded", "--data.limit", "256", "--device", where.device.type]
    flags += ["--precision", "bf16", "--compile", "off", "--plan.batch-size", "32", "--plan.steps", "8"]
    flags += ["--plan.save-every", "4"]

    def run(name: str, *arguments: str) -> Mapping[str, Tensor]:
        if smalti(["pretrain", *arguments]) != 0:
            raise RuntimeError(f"smalti pretrain {name}: an error, see above")
        return read_tensors(home / name / "checkpoints" / "step-00000008" / "model.safetensors")

    straight, again = (run(name, "nano", *flags, "--out", str(home / name)) for name in ("straight", "again"))
    shutil.copytree(home / "straight", home / "stopped", ignore=shutil.ignore_patterns("step-00000008", "result.json"))
    resumed = run("stopped", "--resume", str(home / "stopped"))
    found = Found({"the same run twice": _difference(straight, again)})
    found.expect("stopped and resumed", _difference(straight, resumed), max(1e-3, found.figures["the same run twice"]))
    return found


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest of all weights; 0 where all bits are the same."""
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def one_rank(where: Machine, _: Path) -> Found:
    """DDP and FSDP2 in a group of one process, over NCCL on a GPU, against no group: the loss after two steps."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from smalti.models.layers import Block

    def two_steps(wrap: Callable[[nn.Module], nn.Module]) -> float:
        training = Training.of(next(iter(where.backbones().values())), LINEAR, 4, Compute(where.device, _FP32), False)
        model = wrap(training.trainer.objective)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for _ in range(2):
            output = model(training.batch, torch.tensor(0))
            (output.loss_sum / output.weight).backward()
            optimizer.step()
            optimizer.zero_grad()
        return mean_metrics(model(training.batch, torch.tensor(0)))["loss"]

    def sharded(objective: nn.Module) -> nn.Module:
        for block in (module for module in objective.modules() if isinstance(module, Block)):
            fully_shard(block)
        fully_shard(objective)
        return objective

    found, alone = Found({"backend": "nccl" if where.cuda else "gloo"}), two_steps(lambda objective: objective)
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("cpu:gloo,cuda:nccl" if where.cuda else "gloo", store=store, rank=0, world_size=1)
    try:
        found.expect("DDP, difference of the loss", abs(two_steps(DistributedDataParallel) - alone), 1e-3)
        if where.cuda:  # on a processor FSDP2 is tested with several processes
            found.expect("FSDP2, difference of the loss", abs(two_steps(sharded) - alone), 1e-3)
    finally:
        distributed.destroy_process_group()
    return found


def steps(where: Machine, _: Path) -> Found:
    """Steps of pretraining: images a second, share of the peak, memory beside its estimate, and what waits."""
    found, compute = Found(), choose_compute(where.device.type, "bf16")  # type: ignore[arg-type]
    peak = where.peak_flops(_BF16)
    for name, backbone in where.backbones().items():
        for decoder in (CROSS, LINEAR):
            for compiled in (False, True)[: 1 if where.small else 2]:
                way = f"{name}, {type(decoder).__name__}{', compiled' if compiled else ''}"
                training, rows = _largest(where, backbone, decoder, compute, compiled)
                seconds = where.seconds(training.step)
                flops = 2 * rows * pretraining_multiply_adds(backbone, _masking(decoder), decoder, 8192).training
                found.figures[f"{way}: images a second"] = rows / seconds
                found.figures[f"{way}: share of the peak"] = flops / seconds / peak
                found.figures[f"{way}: batch"] = rows
                if where.cuda:
                    _memory(found, way, training, backbone, decoder, rows)
                    waits = synchronisations(training.step)
                    found.expect(f"{way}: synchronisations in a step", len(waits), 1)  # is the loss finite?
                    found.wrong += waits[1:]
                del training
    return found


def _masking(decoder: Linear | CrossAttention) -> Blockwise | Random:
    return Blockwise(0.4) if isinstance(decoder, Linear) else Random(ratio=0.75)


def _largest(
    where: Machine, backbone: ViT, decoder: Linear | CrossAttention, compute: Compute, compiled: bool
) -> tuple[Training, int]:
    """A training with the largest batch, of 256 images and halves of it, that fits the memory."""
    rows = 4 if where.small else 256
    while True:
        try:
            training = Training.of(backbone, decoder, rows, compute, compiled)
            training.step()
            return training, rows
        except torch.OutOfMemoryError:
            rows //= 2
            if rows < 8:
                raise


def _memory(
    found: Found, way: str, training: Training, backbone: ViT, decoder: Linear | CrossAttention, rows: int
) -> None:
    """The peak of a step beside the estimate of `smalti explain`."""
    torch.cuda.reset_peak_memory_stats()
    training.step()
    patches = backbone.grid[0] * backbone.grid[1]
    seen = None if isinstance(decoder, Linear) else patches - _masking(decoder).count(backbone.grid)
    found.figures[f"{way}: memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    found.figures[f"{way}: estimated, GB"] = sum(training_memory(backbone, rows, _BF16, seen)) / 1e9


def synchronisations(step: Callable[[], object]) -> list[str]:
    """Where a step waits for the GPU, as torch tells it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [
        f"{Path(one.filename).name}:{one.lineno} waits for the GPU" for one in told if "synchron" in str(one.message)
    ]


def peers(where: Machine, _: Path) -> Found:
    """The same network in transformers and timm, in bf16 autocast, not compiled: a training step."""
    found = Found(skipped="transformers is not installed" if find_spec("transformers") is None else "")
    backbone = next(iter(where.backbones().values()))
    compute = Compute(where.device, _BF16)
    training = Training.of(backbone, LINEAR, 4 if where.small else 64, compute, False)
    batch, images = training.batch, training.batch.image.float() / 127.5 - 1

    def measure(name: str, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            with compute.autocast():
                value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()
            optimizer.zero_grad()

        found.figures[f"{name}: images a second"] = len(images) / where.seconds(step)

    found.figures["smalti, linear, as it is: images a second"] = len(images) / where.seconds(training.step)
    if not found.skipped:
        from pretrain_step import mae_loss, transformers_loss

        for name, (model, loss) in {
            "transformers BEiT": transformers_loss(backbone, 8192),
            "transformers MAE": mae_loss(backbone),
        }.items():
            model.to(where.device)
            measure(name, model, lambda loss=loss: loss(batch, images))  # type: ignore[misc]
    if find_spec("timm") is not None:
        from timm.models.vision_transformer import VisionTransformer

        sizes = {
            name: getattr(backbone, name) for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
        }
        classifier = VisionTransformer(**sizes, num_classes=1000).to(where.device)
        measure("timm ViT, classification", classifier, lambda: classifier(images).square().mean())
    return found


def tokenizers(where: Machine, _: Path) -> Found:
    """The discrete VAE of the recipe `small`: images encoded a second, and images trained on a second."""
    run, compute, rows = small.train_tokenizer(), Compute(where.device, _BF16), 4 if where.small else 64
    assert isinstance(run.tokenizer, DVAE)
    config = replace(run.tokenizer, width=16) if where.small else run.tokenizer
    side = 32 if where.small else 112
    images = torch.randint(256, (rows, 3, side, side), dtype=torch.uint8, device=where.device)
    keys = torch.from_numpy(signed(fold(0, np.arange(rows)))).to(where.device)
    batch = Batch(image=images, index=torch.arange(rows, device=where.device), key=keys)
    frozen = config.build().to(where.device).eval().requires_grad_(False)
    objective = DiscreteVAEObjective(config.build().to(where.device), run.relaxation, 1000)
    trainer = Trainer(objective, Optimiser(), Plan(1000, batch_size=rows), ema_decay=0.999)
    encoding = where.seconds(lambda: encode(images, frozen, compute))
    return Found(
        {
            "encoding: images a second": rows / encoding,
            "training: images a second": rows / where.seconds(lambda: trainer.train_step(batch, compute)),
        }
    )


def loader(where: Machine, home: Path) -> Found:
    """JPEG files of 256 pixels as views of 224: images a second from workers, none of them computed on."""
    from PIL import Image

    from smalti.core.log import Log
    from smalti.data.loader import Loader, Sampler, open_view_source
    from smalti.data.transforms.views import RandomResizedCrop, TwoViews

    rng, count, rows, side = np.random.default_rng(0), *((16, 4, 32) if where.small else (2048, 128, 224))
    folder = home / "photographs"
    folder.mkdir()
    for number in range(min(count, 256)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((side + 32, side + 32), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg")
    data = Data(str(folder), side=side, memory="stream", num_workers=1 if where.small else None)
    images = data.open(Log())
    views = TwoViews(RandomResizedCrop(), (side, side))
    source = open_view_source(images, views, data, rows, where.device)
    batches = Loader(source, Sampler(len(images.train), rows, 0))
    try:
        batches(0)
        began, rounds = time.perf_counter(), count // rows
        for step in range(1, rounds + 1):
            batches(step).to(where.device)
        where.wait()
        return Found({"images a second": rounds * rows / (time.perf_counter() - began)})
    finally:
        batches.close()


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (machine, tests, numbers, resume, one_rank, steps, tokenizers, loader, peers)
}
"""In the order of their importance."""


def run_check(name: str, where: Machine) -> Found:
    """One check in this process; an exception is something wrong."""
    with tempfile.TemporaryDirectory() as home:
        try:
            return CHECKS[name](where, Path(home))
        except Exception as error:
            return Found(wrong=[f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"])


def run_apart(name: str, device: str, small_sizes: bool, seconds: float) -> Found:
    """One check in a process of its own, for at most so long."""
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "found.json"
        command = [sys.executable, __file__, "--device", device, "--check", name, "--out", str(out)]
        try:
            done = subprocess.run([*command, *(["--small"] if small_sizes else [])], timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return Found(wrong=[f"not finished after {seconds:.0f} seconds"])
        if not out.exists():
            return Found(wrong=[f"the process ended with {done.returncode}"])
        return Found(**json.loads(out.read_text()))


def page(found: Mapping[str, Found]) -> str:
    """What was found, as Markdown."""
    lines = ["# smalti on a GPU", "", "Made by `python scripts/gpu_check.py`."]
    for name, one in found.items():
        state = (one.skipped and f"skipped: {one.skipped}") or ((one.wrong and "**wrong**") or "as it should be")
        lines += ["", f"## {name}: {state}", "", (CHECKS[name].__doc__ or "").strip(), ""]
        lines += [f"- wrong: {line}" for line in one.wrong]
        if one.figures:
            lines += ["", "| | |", "|---|---|"]
            lines += [
                f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |"
                for key, value in one.figures.items()
            ]
    return "\n".join(lines) + "\n"


def check_all(out: Path, device: str, small_sizes: bool, minutes: float) -> dict[str, Found]:
    """All checks that there is time for; both files are written after each."""
    until, found = time.monotonic() + 60 * minutes, dict[str, Found]()
    out.mkdir(parents=True, exist_ok=True)
    for name in CHECKS:
        left = until - time.monotonic()
        found[name] = run_apart(name, device, small_sizes, left) if left > _LEAST else Found(skipped="no time left")
        write_json(out / "gpu_check.json", {key: asdict(one) for key, one in found.items()})
        write_bytes(out / "README.md", page(found).encode())
        print(f"{name}: {found[name].skipped or '; '.join(found[name].wrong) or 'as it should be'}", flush=True)
    return found


def main() -> int:
    """Read the command line, check, and say whether anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "mps", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny networks, a few calls of each")
    parser.add_argument("--check", choices=list(CHECKS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check:
        device = choose_compute(given.device, "fp32").device
        write_json(given.out, asdict(run_check(given.check, Machine(device, given.small))))
        return 0
    found = check_all(given.out, given.device, given.small, given.minutes)
    return 1 if any(one.wrong for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
