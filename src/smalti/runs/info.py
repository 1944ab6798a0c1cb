"""`smalti info`: what a MODEL is, what goes into it, and what was measured of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.core.compute import choose_compute
from smalti.core.log import printable
from smalti.exporting.bundle import preprocessor
from smalti.runs.facts import facts_of
from smalti.runs.models import load_with_preprocessing
from smalti.training.bundle import read_bundle


@dataclass(frozen=True)
class Info:
    """Which model."""

    model: str
    """A run folder, a bundle, or an imported tokenizer."""


def main(config: Info) -> dict[str, Any]:
    """Print what is known of the model; nothing is written."""
    compute = choose_compute("cpu", "fp32")
    loaded = load_with_preprocessing(config.model, compute)
    facts = facts_of(config.model, loaded, compute)
    shown = preprocessor(loaded, facts.evaluation)
    size = f"{shown['height']} x {shown['width']} pixels, {shown['channels']} channels, centre square"
    lines = [*facts.lines(), f"- input: {size}; mean {shown['mean']}, std {shown['std']}"]
    if loaded.classes:
        lines.append(f"- classes: {', '.join(loaded.classes)}")
    folder = "bundle" if read_bundle(Path(config.model).expanduser()) is not None else "run folder"
    print(printable(f"{config.model}: a {loaded.kind}, in a {folder}"))
    print("\n".join(printable(line) for line in (*lines, *facts.measured()) if line))
    return {
        "kind": loaded.kind,
        "bundle": folder == "bundle",
        "parameters": facts.parameters,
        "recipe": dict(facts.recipe),
        "images": dict(facts.counts),
        "tokenizer_sha256": facts.tokenizer or None,
        "preprocessor": shown,
        "classes": list(loaded.classes),
        "result": dict(facts.result),
        "evaluation": facts.evaluation,
    }
