"""`smalti explain`: every field of a recipe, its unit, where its value comes from, and what it amounts to."""

from collections.abc import Mapping
from typing import Any

import torch

from smalti.core.config import leaves, to_json
from smalti.runs.pretrain import Pretrain
from smalti.runs.train_tokenizer import TrainTokenizer, planned_steps
from smalti.tokenizers.dvae import DVAE

Config = TrainTokenizer | Pretrain


def main(recipe: str, configs: Mapping[str, tuple[Config, Config]]) -> dict[str, Any]:
    """Print a recipe.

    Args:
        configs: for each verb the configuration as the recipe has it, and as the command line made it.
    """
    result = {verb: explain(before, after) for verb, (before, after) in configs.items()}
    for verb, about in result.items():
        print(f"\n{recipe}: {verb.replace('_', '-')}, {about['num_parameters']:,} parameters\n")
        for row in about["fields"]:
            print(
                f"  {row['name']:<26} {row['value']!s:<22} {row['origin']:<12} {row['unit']}  [{row['paper'] or '-'}]"
            )
        if about["scaling"]:
            print(f"  {about['scaling']}")
        for name, values in about["schedules"].items():
            print(f"  {name} at steps " + ", ".join(f"{step}: {value:.3g}" for step, value in values.items()))
    return {"recipe": recipe, **result}


def explain(before: Config, after: Config) -> dict[str, Any]:
    """One configuration as plain values: `fields`, `num_parameters`, `scaling` of the learning rate, `schedules`."""
    fields = []
    was = {old.name: old for old in leaves(before)}
    for new in leaves(after):
        old = was.get(new.name)
        changed = old is None or new.value != old.value
        origin = "command line" if changed else "recipe" if new.value != new.default else "default"
        row = {"name": new.name, "value": to_json(new.value), "origin": origin, "unit": new.unit, "paper": new.paper}
        fields.append(row)
    about = {"fields": fields, "num_parameters": num_parameters(after)}
    return about | {"scaling": after.optimiser.scaling(after.plan.batch_size), "schedules": _schedules(after)}


def num_parameters(config: Config) -> int:
    """Trained parameters; of a pretraining run those of the bare backbone (head and mask token fall away)."""
    with torch.device("meta"):
        module = config.tokenizer.build() if isinstance(config, TrainTokenizer) else config.backbone.build()
    return sum(parameter.numel() for parameter in module.parameters())


def _schedules(config: Config) -> dict[str, dict[int, float]]:
    if isinstance(config, TrainTokenizer) and planned_steps(config) == 0:
        return {}
    steps = config.plan.steps
    shown = sorted({1, steps // 20, steps // 4, steps // 2, 3 * steps // 4, steps} - {0})
    schedules = {"learning rate": config.optimiser.at(config.plan.batch_size).schedule(steps)} | _annealing(config)
    return {name: {step: schedule(step) for step in shown} for name, schedule in schedules.items()}


def _annealing(config: Config) -> dict[str, Any]:
    if isinstance(config, Pretrain) or not isinstance(config.tokenizer, DVAE):
        return {}
    return {
        "temperature": config.relaxation.annealing(config.plan.steps),
        "beta": config.relaxation.ramp(config.plan.steps),
    }
