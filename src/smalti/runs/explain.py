"""`smalti explain`: every field of a recipe, its unit, the origin of its value, and what follows from it."""

from collections.abc import Mapping
from typing import Any

import torch

from smalti.core.config import leaves, to_json
from smalti.models.cost_estimate import num_parameters, num_parameters_whole, pretraining_multiply_adds, training_memory
from smalti.runs.finetune import Finetune
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.training.targets import Pixels

Config = TrainTokenizer | Pretrain | Finetune


def main(recipe: str, configs: Mapping[str, tuple[Config, Config]]) -> dict[str, Any]:
    """Print a recipe.

    Args:
        configs: for each command, the configuration of the recipe, and the one after command-line flags.
    """
    tokenizers = [after.tokenizer for _, after in configs.values() if isinstance(after, TrainTokenizer)]
    vocab_size = tokenizers[0].vocab_size if tokenizers else DallE().vocab_size
    result = {verb: explain(before, after, vocab_size) for verb, (before, after) in configs.items()}
    for verb, about in result.items():
        whole = about["num_parameters_whole"]
        more = f"; {whole:,} with mask token or decoder, and head" if whole != about["num_parameters"] else ""
        print(f"\n{recipe}: {verb.replace('_', '-')}, {about['num_parameters']:,} parameters{more}\n")
        for row in about["fields"]:
            print(
                f"  {row['name']:<26} {row['value']!s:<22} {row['origin']:<12} {row['unit']}  [{row['paper'] or '-'}]"
            )
        if about["scaling"]:
            print(f"  {about['scaling']}")
        for name, values in about["schedules"].items():
            print(f"  {name} at steps " + ", ".join(f"{step}: {value:.3g}" for step, value in values.items()))
        if about["memory_mb"]:
            amounts = ", ".join(f"{name} {amount:,.1f}" for name, amount in about["memory_mb"].items())
            print(f"  memory of the backbone, MB: {amounts}")
        if about["multiply_adds"]:
            forward, training, outputs = about["multiply_adds"].values()
            work = f"forward {forward / 1e6:,.1f} M, forward and backward {training / 1e6:,.1f} M"
            print(f"  multiply-adds an image, {outputs} outputs, without the tokenizer: {work}")
    return {"recipe": recipe, **result}


def explain(before: Config, after: Config, vocab_size: int) -> dict[str, Any]:
    """One configuration as plain values.

    Args:
        vocab_size: visual tokens that a pretraining predicts.

    Returns:
        `fields`, `num_parameters` of tokenizer or backbone, `num_parameters_whole` (of pretraining also mask token or
        decoder, and head), `scaling` of the learning rate, `schedules`, `memory_mb`, `multiply_adds`.
    """
    fields = []
    was = {old.name: old for old in leaves(before)}
    for new in leaves(after):
        old = was.get(new.name)
        changed = old is None or new.value != old.value
        origin = "command line" if changed else "recipe" if new.value != new.default else "default"
        row = {"name": new.name, "value": to_json(new.value), "origin": origin, "unit": new.unit, "paper": new.paper}
        fields.append(row)
    network = after.tokenizer if isinstance(after, TrainTokenizer) else after.backbone
    unknown = isinstance(network, TeacherBased) and network.backbone is None  # those of a teacher not yet read
    own = 0 if unknown else num_parameters(network)
    whole = own
    if isinstance(after, Pretrain):
        whole = num_parameters_whole(
            after.backbone, after.decoder, _num_outputs(after, vocab_size), after.patch_aggregation
        )
    return {
        "fields": fields,
        "num_parameters": own,
        "num_parameters_whole": whole,
        "scaling": after.optimiser.scaling(after.plan.batch_size),
        "schedules": _schedules(after),
        "memory_mb": _memory_mb(after),
        "multiply_adds": _multiply_adds(after, vocab_size),
    }


def _memory_mb(config: Config) -> dict[str, float]:
    """The memory that a backbone needs (`training_memory`), computed without running it."""
    if isinstance(config, TrainTokenizer):
        return {}
    vit, seen = config.backbone, None
    if isinstance(config, Pretrain):
        seen = config.decoder.num_visible(config.masking, vit.grid)
    short, full = (
        training_memory(vit, config.plan.micro_batch_size, dtype, seen) for dtype in (torch.bfloat16, torch.float32)
    )
    with torch.device("meta"):
        network = vit.build()
    return {
        "weights": full.weights / 1e6,
        "gradients": full.gradients / 1e6,
        "optimiser": config.optimiser.moments_bytes(network) / 1e6,
        "activations in fp32": full.activations / 1e6,
        "activations in bf16": short.activations / 1e6,
    }


def _num_outputs(config: Pretrain, vocab_size: int) -> int:
    """The width of the head."""
    vit = config.backbone
    return vit.in_chans * vit.patch_size**2 if isinstance(config.target, Pixels) else vocab_size


def _multiply_adds(config: Config, vocab_size: int) -> dict[str, int]:
    """The multiply-adds an image of pretraining, without those of the tokenizer; `outputs` is the width of the head."""
    if not isinstance(config, Pretrain):
        return {}
    num_outputs = _num_outputs(config, vocab_size)
    work = pretraining_multiply_adds(
        config.backbone, config.masking, config.decoder, num_outputs, config.patch_aggregation
    )
    return {"forward": work.forward, "training": work.training, "outputs": num_outputs}


def _schedules(config: Config) -> dict[str, dict[int, float]]:
    """Values at some steps, counted from 1: at parts of the run, and of what is annealed in fewer steps."""
    if isinstance(config, TrainTokenizer) and config.planned_steps == 0:
        return {}
    steps = config.plan.steps
    shown = {1, steps // 20, steps // 4, steps // 2, 3 * steps // 4, steps}
    for each in (config.annealing() or ()) if isinstance(config, TrainTokenizer) else ():
        shown |= {each.steps // 4, each.steps // 2, each.steps}
    return {name: {step: each(step) for step in sorted(shown - {0})} for name, each in config.schedules().items()}
