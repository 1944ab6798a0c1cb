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
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.teachers import read_teacher
from smalti.runs.tokenizers import target_tokenizer
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.training.nonfinite import CapturedStep, Numbers, first_not_finite, numbers_as_json, read_captured
from smalti.training.trainer import Trainer

_Run: TypeAlias = Pretrain | TrainTokenizer | Finetune


@dataclass(frozen=True)
class Replay:
    """Which step."""

    captured: str
    """A folder in captures/ of a run, or a copy of it."""


def main(config: Replay) -> dict[str, Any]:
    """Run forward and backward of the step twice: as in the run, and then with checks, without compiled blocks.

    Raises:
        CheckpointError: the folder is no captured step, or is damaged.
        DataError: the images are not those that the run was trained on.
        RefusedError: the numbers differ from those of the run.
    """
    folder, log = Path(config.captured).expanduser(), Log()
    captured = read_captured(folder)
    compute = choose_compute(captured.computed.device, captured.computed.precision)
    run = _run(str(folder))
    images = _open(run, folder, log)
    trainer, batch = _rebuilt(run, images, compute, captured)
    found = _computed(trainer, batch, compute)
    uncompiled = run if isinstance(run, TrainTokenizer) else replace(run, compile="off")
    watched, batch = _rebuilt(uncompiled, images, compute, captured)
    first = first_not_finite(watched.objective.model, lambda: _computed(watched, batch, compute))
    result = {"step": captured.before.step, **numbers_as_json(found), "reproduced": found.same(captured.numbers)}
    result["first"] = None if first is None else first._asdict()
    print(describe(result))
    if not result["reproduced"]:
        raise RefusedError(
            f"step {captured.before.step} is not reproduced bit for bit", cause=_difference(captured, found)
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


def _run(folder: str) -> _Run:
    """The configuration of the run; the token cache is left out, since cached tokens equal computed ones."""
    if read_kind(folder) == Pretrain.__name__:
        return replace(read_config(folder, Pretrain), token_cache="")
    if read_kind(folder) == Finetune.__name__:
        return read_config(folder, Finetune)
    return read_config(folder, TrainTokenizer)


def _open(run: _Run, captured: Path, log: Log) -> AnyImages:
    """The images of the run, without those that must not be opened again; nothing is written to the captured step."""
    folder = RunFolder(captured)
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


def _rebuilt(run: _Run, images: AnyImages, compute: Compute, captured: CapturedStep) -> tuple[Trainer, Batch]:
    """The trainer as it was before the step, and the batch of the step.

    Raises:
        DataError: the batch has other images: one that could be read then cannot be read now, or vice versa.
    """
    trainer, batches = _prepared(run, images, compute)
    trainer.load_state(captured.before, "the captured step")
    trainer.objective.train()
    batch = batches(captured.before.step).to(compute.device)
    batches.close()
    if (batch.index.tolist(), batch.key.tolist()) != (captured.index, captured.keys):
        raise DataError("the batch shows other images than that of the run", fix="bring back those that were readable")
    return trainer, batch


def _prepared(run: _Run, images: AnyImages, compute: Compute) -> tuple[Trainer, Batches]:
    if isinstance(run, Finetune):
        return finetune.prepare(run, run.split_images(images, Log()), compute)
    if isinstance(run, Pretrain):
        return pretrain.prepare(run, images, target_tokenizer(run.tokenizer, run.target, compute), compute)
    run, teacher = replace(run, init_images=0), None  # its weights are in the captured step
    if isinstance(run.tokenizer, TeacherBased):
        tokenizer, data, teacher, _ = read_teacher(run.tokenizer, run.data, compute, Log())
        run = replace(run, data=data, tokenizer=tokenizer)
    return train_tokenizer.prepare(run, images, compute, teacher)


def _computed(trainer: Trainer, batch: Batch, compute: Compute) -> Numbers:
    """The results of forward and backward of the step."""
    trainer.optimizer.zero_grad(set_to_none=True)
    output, norm = trainer.gradients(batch, compute)
    return Numbers.of(trainer.objective.model, output.loss_sum / output.weight, norm)


def _difference(captured: CapturedStep, found: Numbers) -> str:
    then, threads = captured.numbers, torch.get_num_threads()
    told = (
        ""
        if threads == captured.computed.threads
        else f"; {captured.computed.threads} threads then, {threads} now (OMP_NUM_THREADS)"
    )
    if captured.computed.processes > 1:
        told += f"; {captured.computed.processes} processes then, which add up in another order, 1 now"
    return (
        f"loss {then.loss:g} then, {found.loss:g} now; gradient norm {then.grad_norm:g} then, {found.grad_norm:g} now"
        f"{told}"
    )
