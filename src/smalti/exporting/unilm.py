"""Export in the layout of the released code (microsoft/unilm, beit), as safetensors: no pickle is written.

Of pretraining: mask token, `lm_head`, and relative positions as they are. Of a classifier: tables for each block,
`fc_norm` and `head`. The indices of the tables, which the released code saves too, are there for strict loading.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from smalti.core.errors import UsageError
from smalti.core.files import write_bytes
from smalti.core.tensors import read_tensors, to_safetensors
from smalti.exporting.certificate import Pairs
from smalti.exporting.graphs import outputs_of_both
from smalti.exporting.loaded_model import LoadedModel, Network, has_norm
from smalti.functional.positions import relative_position_index
from smalti.models.classifier import ImageClassifier, build_classifier
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.segmenter import Segmenter
from smalti.models.vit import VisionTransformer, ViT
from smalti.weights.names import from_timm, to_released, to_timm

PACKAGES = ()
_WEIGHTS = "model.safetensors"
_INDEX = "relative_position_index"


def write(loaded: LoadedModel, folder: Path) -> str:
    """Write the weights. Returns the lines of Python that make the file that the released code reads."""
    network, variant = loaded.network, _variant(loaded)
    ours = loaded.weights_as(variant)
    classifier = isinstance(network, ImageClassifier)
    weights = to_timm(ours, layer_scale_modules=False) if classifier else to_released(ours)
    for name in [name for name in weights if name.endswith("relative_position_bias_table")]:
        weights[name.replace("relative_position_bias_table", _INDEX)] = relative_position_index(variant.grid)
    write_bytes(folder / _WEIGHTS, to_safetensors({name: value.clone() for name, value in weights.items()}))
    return _SNIPPET


_SNIPPET = """import torch
from safetensors.torch import load_file

torch.save({"model": load_file("FOLDER/model.safetensors")}, "checkpoint.pth")  # what the released code reads
"""


def _variant(loaded: LoadedModel) -> ViT:
    """The backbone as the released code has it."""
    network, config = loaded.network, loaded.backbone.config
    if isinstance(network, Segmenter) or (isinstance(network, MaskedImageModel) and network.decoder is not None):
        what = "segmenter with these names" if isinstance(network, Segmenter) else "decoder but a linear head"
        raise UsageError(f"the released code has no {what}", fix="export the backbone: --part backbone")
    relative = isinstance(network, ImageClassifier) and config.positions != "absolute"
    return replace(config, k_bias=False, positions="block_relative" if relative else config.positions)


def compare(loaded: LoadedModel, folder: Path, images: Tensor) -> Pairs:
    """The outputs of our network, and of one of the released variant into which the file is read back."""
    again = _again(loaded, read_tensors(folder / _WEIGHTS))
    again.eval()
    return outputs_of_both(loaded.network, again, images)


@torch.no_grad()
def _again(loaded: LoadedModel, weights: dict[str, Tensor]) -> Network:
    network, variant = loaded.network, _variant(loaded)
    own = from_timm(weights)
    if isinstance(network, VisionTransformer):
        backbone = variant.build()
        backbone.norm = backbone.norm if has_norm(network) else nn.Identity()
        backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in own.items()})
        return backbone
    if isinstance(network, ImageClassifier):
        classifier = build_classifier(variant, len(loaded.classes), network.pooling)
        head = {name: value for name, value in weights.items() if name.startswith(("head.", "fc_norm."))}
        classifier.load_state_dict(own | head)
        return classifier
    model = build_mim(variant, len(own["head.bias"]))
    model.load_state_dict(own)
    return model
