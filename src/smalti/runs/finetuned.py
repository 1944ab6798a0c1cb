"""What a fine-tuned network is worth on other labelled images than those of its run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.core.compute import Compute
from smalti.core.log import Log, printable
from smalti.runs.finetune import Finetune
from smalti.runs.folder import RunFolder, read_config
from smalti.runs.models import load_finetuned


def measure_finetuned(run: str, images: str, compute: Compute, log: Log) -> dict[str, Any]:
    """The chosen network on all images of a DATA; keys as those of `test_` in the result of a run, and `images`.

    Raises:
        DataError: the images have no labels, or others than the run has learned.
    """
    config, outputs = read_config(run, Finetune), RunFolder(Path(run).expanduser()).read_classes()
    shown = config.task.read(images, config.data, outputs, log)
    log.say(f"all {len(shown)} images of {images}; what the run has learned from would flatter it")
    model = load_finetuned(run, compute)
    measured = config.task.measure(model, shown, outputs, config.backbone.img_size, compute)
    return {"images": len(shown)} | measured.as_dict()


def describe_finetuned(result: Mapping[str, Any]) -> str:
    """The scores in a line, and one line for each class."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.items() if isinstance(value, float))
    classes = next(value.items() for value in result.values() if isinstance(value, dict))
    lines = (f"  {printable(name):<28} {'-' if score is None else f'{score:.1%}':>7}" for name, score in classes)
    return "\n".join([f"{result['images']} images: {scores}", *lines])
