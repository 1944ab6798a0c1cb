"""`smalti replay`: repeat the step that stopped a run, and find where it fails."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from smalti.core.compute import Compute, choose_compute
from smalti.core.contracts import Batch, Batches
from smalti.core.errors import DataError, RefusedError
from smalti.core.log import Log
from smalti.data.load import AnyImages
from smalti.runs import finetune, pretrain, train_tokenizer
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config, read_kind
from smalti.runs.pretrain import Pretrain
from smalti.runs.teachers import read_teacher
from smalti.runs.tokenizers import target_tokenizer
from smalti.runs.train_tokenizer import TrainTokenizer
from smalti.tokenizers.taught import Taught
from smalti.training.nonfinite import DumpStep, Numbers, first_not_finite, numbers_as_json, read_dump
from smalti.training.trainer import Trainer

_Run: TypeAlias = Pretrain | TrainTokenizer | Finetune


@dataclass(frozen=True)
class Replay:
    """Which step."""

    bundle: str
    """A folder in captures/ of a run, or a copy of it."""


def main(config: Replay) -> dict[str, Any]:
    """Run forward and backward of the step twice: as in the run, and then with checks, without compiled blocks.

    Raises:
        CheckpointError: the folder is not a bundle, or is damaged.
        DataError: the images are not those that the run was trained on.
        RefusedError: the numbers differ from those of the run.
    """
    bundle, log = Path(config.bundle).expanduser(), Log()
    capture = read_dump(bundle)
    compute = choose_compute(capture.computed.device, capture.computed.precision)
    run = _run(str(bundle))
    images = _open(run, bundle, log)
    trainer, batch = _rebuilt(run, images, compute, capture)
    found = _computed(trainer, batch, compute)
    watched, batch = _rebuilt(_uncompiled(run), images, compute, capture)
    first = first_not_finite(watched.objective.model, lambda: _computed(watched, batch, compute))
    result = {"step": capture.before.step, **numbers_as_json(found), "reproduced": found.same(capture.numbers)}
    result["first"] = None if first is None else first._asdict()
    print(describe(result))
    if not result["reproduced"]:
        raise RefusedError(
            f"step {capture.before.step} is not reproduced bit for bit", cause=_difference(capture, found)
        )
    return result


def describe(result: dict[str, Any]) -> str:
    """The result as two lines."""
    first = result["first"]
    place = "nothing is out of range" if first is None else f"first not finite: {first['kind']} {first['name']}".strip()
    bits = "equal to" if result["reproduced"] else "different from"
    return (
        f"step {result['step']}: loss {result['loss']}, gradient norm {result['grad_norm']},"
        f" {bits} the numbers of the run\n{place}"
    )


def _run(bundle: str) -> _Run:
    """The configuration of the run; the token cache is left out, since cached tokens equal computed ones."""
    if read_kind(bundle) == Pretrain.__name__:
        return replace(read_config(bundle, Pretrain), token_cache="")
    if read_kind(bundle) == Finetune.__name__:
        return read_config(bundle, Finetune)
    return read_config(bundle, TrainTokenizer)


def _uncompiled(run: _Run) -> _Run:
    return run if isinstance(run, TrainTokenizer) else replace(run, compile="off")


def _open(run: _Run, bundle: Path, log: Log) -> AnyImages:
    """The images of the run, without those that must not be opened again; nothing is written to the bundle."""
    folder = RunFolder(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        bad_files = Path(scratch) / folder.bad_files.name
        if folder.bad_files.exists():
            shutil.copy(folder.bad_files, bad_files)
        data = replace(run.data, num_workers=0)
        images = run.task.open(data, log, bad_files) if isinstance(run, Finetune) else data.open(log, bad_files)
    found = {"images": len(images.train), "fingerprint": images.train.fingerprint()}
    if not found.items() <= (folder.read_data() or {}).items():
        raise DataError("the images are not those of the run", cause=run.data.path, fix="bring them back")
    return images


def _rebuilt(run: _Run, images: AnyImages, compute: Compute, capture: DumpStep) -> tuple[Trainer, Batch]:
    """The trainer as it was before the step, and the batch of the step.

    Raises:
        DataError: the batch has other images: one that could be read then cannot be read now, or vice versa.
    """
    trainer, batches = _prepared(run, images, compute)
    trainer.load_state(capture.before, "the bundle")
    trainer.objective.train()
    batch = batches(capture.before.step).to(compute.device)
    batches.close()
    if (batch.index.tolist(), batch.key.tolist()) != (capture.index, capture.keys):
        raise DataError("the batch shows other images than that of the run", fix="bring back those that were readable")
    return trainer, batch


def _prepared(run: _Run, images: AnyImages, compute: Compute) -> tuple[Trainer, Batches]:
    if isinstance(run, Finetune):
        return finetune.prepare(run, run.divided(images, Log()), compute)
    if isinstance(run, Pretrain):
        return pretrain.prepare(run, images, target_tokenizer(run.tokenizer, run.target, compute), compute)
    run, teacher = replace(run, init_images=0), None  # its weights are in the bundle
    if isinstance(run.tokenizer, Taught):
        tokenizer, data, teacher, _ = read_teacher(run.tokenizer, run.data, compute, Log())
        run = replace(run, data=data, tokenizer=tokenizer)
    return train_tokenizer.prepare(run, images, compute, teacher)


def _computed(trainer: Trainer, batch: Batch, compute: Compute) -> Numbers:
    """The results of forward and backward of the step."""
    trainer.optimizer.zero_grad(set_to_none=True)
    output, norm = trainer.gradients(batch, compute)
    return Numbers.of(trainer.objective.model, output.loss_sum / output.weight, norm)


def _difference(capture: DumpStep, found: Numbers) -> str:
    then, threads = capture.numbers, torch.get_num_threads()
    told = (
        ""
        if threads == capture.computed.threads
        else f"; {capture.computed.threads} threads then, {threads} now (OMP_NUM_THREADS)"
    )
    if capture.computed.processes > 1:
        told += f"; {capture.computed.processes} processes then, which add up in another order, 1 now"
    return (
        f"loss {then.loss:g} then, {found.loss:g} now; gradient norm {then.grad_norm:g} then, {found.grad_norm:g} now"
        f"{told}"
    )
