"""Export for Hugging Face's transformers: its ViT where that can hold the network, else its BEiT; without remote code.

ViT has absolute positions, no LayerScale, a last norm, and classifies by [S]. BEiT has any positions, LayerScale and
mean pooling, on square images only: it interpolates positions on the assumption of a square grid.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.core.errors import RefusedError, UsageError
from smalti.core.files import write_bytes, write_json
from smalti.core.tensors import to_safetensors
from smalti.exporting.certificate import Pairs
from smalti.exporting.graphs import outputs
from smalti.exporting.loaded_model import LoadedModel, has_norm
from smalti.models.classifier import ImageClassifier
from smalti.models.mim import MaskedImageModel
from smalti.models.segmenter import Segmenter
from smalti.models.vit import ViT
from smalti.weights.names import classifier_to_huggingface, to_huggingface

PACKAGES = ("transformers", "torchvision")
_WEIGHTS = "model.safetensors"
_BICUBIC = 3
"""Pillow's number of the interpolation."""


def architecture(loaded: LoadedModel) -> str:
    """The class of transformers.

    Raises:
        UsageError: it has none for this network.
    """
    network, config = loaded.network, loaded.backbone.config
    if isinstance(network, Segmenter):
        raise UsageError("transformers has no such segmenter", fix="export the backbone: --part backbone")
    if isinstance(network, MaskedImageModel) and network.decoder is not None:
        cause = "BeitForMaskedImageModeling has a linear head only"
        raise UsageError("transformers has no masked image model with a decoder", cause=cause, fix="--part backbone")
    bare = config.positions == "absolute" and config.init_values is None
    if bare and isinstance(network, ImageClassifier) and network.pooling == "cls":
        return "ViTForImageClassification"
    if bare and not isinstance(network, ImageClassifier | MaskedImageModel) and has_norm(loaded.backbone):
        return "ViTModel"
    if config.grid[0] != config.grid[1]:
        raise UsageError(
            f"transformers' BEiT cannot hold a grid of {config.grid[0]}x{config.grid[1]} patches",
            cause="it assumes a square grid where it interpolates positions",
            fix="use --to timm, onnx or torch-export",
        )
    if isinstance(network, MaskedImageModel):
        return "BeitForMaskedImageModeling"
    return "BeitForImageClassification" if isinstance(network, ImageClassifier) else "BeitModel"


def write(loaded: LoadedModel, folder: Path) -> str:
    """Write weights, configuration and image processor. Returns the lines of Python that load them."""
    name = architecture(loaded)
    weights = _weights(loaded, name)
    tensors = {key: value.clone() for key, value in weights.items()}
    write_bytes(folder / _WEIGHTS, to_safetensors(tensors, {"format": "pt"}))
    write_json(folder / "config.json", _config(loaded, name))
    write_json(folder / "preprocessor_config.json", _preprocessor(loaded))
    loads, result = _USES[name]
    return _SNIPPET.format(loads=loads, result=result)


_FEATURES = ("AutoModel", "features = model(**inputs).last_hidden_state  # [S], then the patches")
_LOGITS = ("AutoModelForImageClassification", "logits = model(**inputs).logits")
_MASKED = "logits = model(**inputs, bool_masked_pos=mask).logits  # mask: batch x patches"
_USES = {
    **dict.fromkeys(("ViTModel", "BeitModel"), _FEATURES),
    **dict.fromkeys(("ViTForImageClassification", "BeitForImageClassification"), _LOGITS),
    "BeitForMaskedImageModeling": ("BeitForMaskedImageModeling", _MASKED),
}
"""By architecture, the class that loads it and the line that computes with it."""
_SNIPPET = """from transformers import AutoImageProcessor, {loads}

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = {loads}.from_pretrained("FOLDER").eval()
inputs = processor(images, return_tensors="pt")  # images: of Pillow
{result}
"""


def _weights(loaded: LoadedModel, name: str) -> dict[str, Tensor]:
    config, width = loaded.backbone.config, loaded.backbone.embed_dim
    ours = loaded.weights_as(replace(config, k_bias=name.startswith("ViT")))
    if not isinstance(loaded.network, ImageClassifier):
        weights = to_huggingface(ours, "beit." if name == "BeitForMaskedImageModeling" else "")
        if name == "ViTModel":  # its pooler, which has no part in pretraining, hands [S] on
            weights |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
        if name == "BeitModel" and not has_norm(loaded.backbone):
            weights |= {"pooler.layernorm.weight": torch.ones(width), "pooler.layernorm.bias": torch.zeros(width)}
        return weights
    prefix = "vit." if name.startswith("ViT") else "beit."
    head = {key: ours.pop(key) for key in list(ours) if key.startswith(("head.", "fc_norm."))}
    return to_huggingface(ours, prefix) | classifier_to_huggingface(head, prefix)


def _config(loaded: LoadedModel, name: str) -> dict[str, Any]:
    """config.json. `use_mean_pooling` of BEiT also says that the backbone has no last norm of its own."""
    network, config = loaded.network, loaded.backbone.config
    result: dict[str, Any] = {
        "architectures": [name],
        "model_type": "vit" if name.startswith("ViT") else "beit",
        **sizes_of(config),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": image_size(config),
        "dtype": "float32",
    }
    if loaded.classes:
        result["id2label"] = {str(number): label for number, label in enumerate(loaded.classes)}
        result["label2id"] = {label: number for number, label in enumerate(loaded.classes)}
    if name.startswith("ViT"):
        return result | {"qkv_bias": True, "pooler_act": "linear"}
    masked = isinstance(network, MaskedImageModel)
    vocabulary = {"vocab_size": network.head.out_features} if isinstance(network, MaskedImageModel) else {}
    return (
        result
        | vocabulary
        | {
            "use_mask_token": masked,
            "use_absolute_position_embeddings": config.positions == "absolute",
            "use_relative_position_bias": config.positions == "block_relative",
            "use_shared_relative_position_bias": config.positions == "shared_relative",
            "layer_scale_init_value": config.init_values or 0.0,
            "drop_path_rate": config.drop_path_rate,
            "use_mean_pooling": masked or not has_norm(loaded.backbone),
        }
    )


def sizes_of(vit: ViT) -> dict[str, int]:
    """The sizes of a backbone by their names in config.json."""
    return {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": int(vit.embed_dim * vit.mlp_ratio),
        "patch_size": vit.patch_size,
        "num_channels": vit.in_chans,
    }


def image_size(vit: ViT) -> int | list[int]:
    """`image_size` in config.json: the side of a square, else height and width."""
    height, width = vit.img_size
    return height if height == width else [height, width]


def _preprocessor(loaded: LoadedModel) -> dict[str, Any]:
    """preprocessor_config.json: the shorter side is resized, then the centre square is cut out."""
    shown = loaded.preprocessing
    height, width = shown.size
    square = height == width
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height} if square else {"height": height, "width": width},
        "resample": _BICUBIC,
        "do_center_crop": square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": shown.mean,
        "image_std": shown.std,
    }


@torch.no_grad()
def compare(loaded: LoadedModel, folder: Path, images: Tensor) -> Pairs:
    """The outputs of our network, and of transformers' with its image processor.

    Raises:
        RefusedError: it does not find all weights under their names.
    """
    import transformers

    name = architecture(loaded)
    transformers.utils.logging.disable_progress_bar()
    model, told = getattr(transformers, name).from_pretrained(str(folder), output_loading_info=True)
    odd = sorted(key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in told[kind])
    if odd:
        raise RefusedError(f"transformers does not find {odd[0]}", cause=f"{name} has other names", fix="report it")
    processor = transformers.AutoImageProcessor.from_pretrained(str(folder))
    pixels = processor(list((images * 255).round().byte()), return_tensors="pt")["pixel_values"]
    model, network = model.eval(), loaded.network
    pairs = {"pixels": (loaded.preprocessing.normalised(images), pixels)}
    if isinstance(network, MaskedImageModel):
        rows, columns = loaded.backbone.config.grid
        mask = (torch.arange(rows * columns) % 2 == 1).expand(len(images), -1)
        logits = model(pixels, bool_masked_pos=mask).logits
        return pairs | {"logits": (outputs(network, images)["logits"], logits[:, 1::2])}
    if isinstance(network, ImageClassifier):
        return pairs | {"logits": (network(images), model(pixels).logits)}
    features = loaded.backbone(images)
    tokens = torch.cat([features.cls[:, None], features.patches], dim=1)
    return pairs | {"features": (tokens, model(pixels).last_hidden_state)}
