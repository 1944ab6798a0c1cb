"""`smalti import`: weights of other programs as a MODEL, and the public DALL-E tokenizer from its two files."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from smalti import __version__
from smalti.core.compute import choose_compute
from smalti.core.config import require, setting, to_json
from smalti.core.errors import UsageError
from smalti.core.files import new_folder, require_new, sha256, write_bytes, write_folder
from smalti.core.log import printable
from smalti.data.load import Data
from smalti.exporting import bundle
from smalti.exporting.card import IMPORTED, Facts, card
from smalti.exporting.certificate import Pairs, certify, describe, sample_images
from smalti.exporting.graphs import outputs_of_both
from smalti.exporting.loaded_model import LoadedModel
from smalti.exporting.transformers_source import last_hidden_state
from smalti.models.classifier import ImageClassifier
from smalti.runs.classification_task import Classification
from smalti.runs.finetune import Finetune
from smalti.runs.folder import holds_run
from smalti.runs.foreign import Statistics, read_foreign
from smalti.runs.models import load_with_preprocessing
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.tokenizers import IMPORTED_CONFIG, IMPORTED_WEIGHTS
from smalti.weights.dalle import read_dalle
from smalti.weights.names import is_huggingface
from smalti.weights.read import describing, read_weights


@dataclass(frozen=True)
class ImportModel:
    """Which files, and where to. They are read without running anything in them."""

    files: tuple[str, ...]
    """A file or folder of weights (timm, transformers, unilm, lightly); or encoder.pkl and decoder.pkl of DALL-E."""
    out: str = setting("", "the folder to write, a MODEL")
    num_heads: int | None = setting(None, "attention heads, where no file says them; none: one for 64 channels")
    img_size: tuple[int, int] | None = setting(
        None, "height and width in pixels, where no file says them; none: square"
    )
    normalisation: Statistics = setting(
        "auto",
        "pixel mean and deviation it was trained with; auto: those in a file beside the weights, else half (0.5)",
    )

    def __post_init__(self) -> None:
        require(bool(self.out), "no folder to write", "use --out MODEL")
        require(len(self.files) in (1, 2), f"{len(self.files)} files", "give one of weights, or the two of DALL-E")
        require(self.num_heads is None or self.num_heads >= 1, f"num_heads is {self.num_heads}", "use at least 1")


def main(config: ImportModel) -> dict[str, Any]:
    """Read, check and write the model.

    Returns:
        `out`, `parameters`; of DALL-E its configuration and the digests of the files; of others `kind`, `backbone`,
        `left_out` (names in the file that the model does not have) and `certificate`.

    Raises:
        UsageError: the output folder is not empty, or the weights do not tell all that is needed.
        CheckpointError: a file is damaged, holds no network that is known, or asks for anything to be run.
    """
    out = Path(config.out).expanduser()
    require_new(out, "an import")
    for file in filter(holds_run, config.files):
        cause, fix = "smalti wrote it", "give it as MODEL or --init; nothing needs to be imported"
        raise UsageError(f"{file} is a MODEL already", cause=cause, fix=fix)
    return _dalle(config, out) if len(config.files) == 2 else _network(config, out)


def _dalle(config: ImportModel, out: Path) -> dict[str, Any]:
    paths = [Path(file).expanduser() for file in config.files]
    tokenizer, weights = read_dalle(paths)
    sources = {path.name: sha256(path.read_bytes()) for path in paths}
    about = {"smalti": __version__, "config": to_json(tokenizer), "sources": sources}
    write_folder(out, {IMPORTED_CONFIG: (json.dumps(about, indent=2) + "\n").encode(), IMPORTED_WEIGHTS: save(weights)})
    parameters = sum(value.numel() for value in weights.values())
    return {"out": config.out, "tokenizer": to_json(tokenizer), "parameters": parameters, "sources": sources}


def _network(config: ImportModel, out: Path) -> dict[str, Any]:
    place = config.files[0]
    loaded, left_out = read_foreign(place, config.num_heads, config.normalisation, config.img_size)
    name = Path(place).expanduser().resolve().name
    parameters = sum(value.numel() for value in loaded.network.parameters())
    facts = Facts(name, parameters, {IMPORTED: printable(name)}, {}, "", {}, None)
    with new_folder(out) as folder:
        uses = bundle.write(loaded, facts, to_json(_configuration(loaded)), 0, folder)
        images = sample_images(loaded.preprocessing)
        certificate = certify(folder, "bundle", _compared(loaded, folder, Path(place).expanduser(), images), ())
        write_bytes(folder / "README.md", card(loaded, facts, "bundle", uses, certificate))
    print(f"written: {out}, a {loaded.kind}; {describe(certificate)}")
    for line in left_out:
        print(f"left out: {printable(line)}")
    about = {
        "kind": loaded.kind,
        "backbone": to_json(loaded.backbone.config),
        "left_out": left_out,
        "certificate": certificate,
    }
    return {"out": config.out, "parameters": parameters} | about


def _configuration(loaded: LoadedModel) -> Pretrain | Finetune:
    """The configuration of a run that would have made the network; its settings of training mean nothing."""
    vit = loaded.backbone.config
    data = Data(channels=vit.in_chans, side=vit.img_size[0])
    if isinstance(loaded.network, ImageClassifier):
        return Finetune(data=data, backbone=vit, task=Classification(pooling=loaded.network.pooling), choose="last")
    return Pretrain(data=data, backbone=vit)


@torch.no_grad()
def _compared(loaded: LoadedModel, folder: Path, place: Path, images: Tensor) -> Pairs:
    """What the network computes, what the folder does, and, of a folder of transformers, what that library does."""
    again = load_with_preprocessing(str(folder), choose_compute("cpu", "fp32"))
    pairs = outputs_of_both(loaded.network, again.network, images)
    settings = describing(str(place)) if importlib.util.find_spec("transformers") is not None else None
    weights = {} if settings is None else read_weights(str(place))  # they are read again only where they are compared
    if settings is None or not is_huggingface(weights):
        return pairs
    backbone = loaded.backbone
    shown = last_hidden_state(settings, backbone.config, weights, loaded.preprocessing.normalised(images))
    features = backbone.encode(backbone.embed(images), layers=True)
    final = torch.cat([features.cls[:, None], features.patches], dim=1)
    pooled = settings.get("model_type") == "beit" and settings.get("use_mean_pooling", True)  # its norm comes later
    return pairs | {"features of transformers": (features.layers[-1] if pooled else final, shown)}
