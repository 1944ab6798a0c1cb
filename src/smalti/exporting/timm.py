"""Export for timm: its `VisionTransformer` for absolute positions, its `Beit` for relative ones."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smalti.core.errors import UsageError
from smalti.core.files import write_bytes, write_json
from smalti.core.tensors import to_safetensors
from smalti.exporting.certificate import Pairs
from smalti.exporting.loaded_model import LoadedModel, has_norm
from smalti.models.classifier import ImageClassifier
from smalti.models.vit import VisionTransformer, ViT
from smalti.weights.names import to_timm

PACKAGES = ("timm",)
_WEIGHTS = "model.safetensors"
_NAMES = {
    (192, 12, 3): "vit_tiny_patch16_224",
    (384, 12, 6): "vit_small_patch16_224",
    (768, 12, 12): "vit_base_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224",
}
_BEIT_NAMES = {(768, 12, 12): "beit_base_patch16_224", (1024, 24, 16): "beit_large_patch16_224"}
_REGISTERED = {"img_size": (224, 224), "patch_size": 16, "in_chans": 3, "mlp_ratio": 4.0}
"""What every registered name above has."""


@dataclass(frozen=True)
class Architecture:
    """A registered name of timm, and the arguments of `create_model` in which the network differs from it."""

    name: str
    arguments: dict[str, Any]

    def call(self, place: str) -> str:
        """The call in Python that makes the network, its weights at `place`."""
        given = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f'timm.create_model("{self.name}", checkpoint_path="{place}/{_WEIGHTS}"{given})'


def architecture(loaded: LoadedModel) -> Architecture:
    """The architecture of a backbone or classifier.

    Raises:
        UsageError: timm has no such network.
    """
    network, config = loaded.network, loaded.backbone.config
    if not isinstance(network, VisionTransformer | ImageClassifier):
        raise UsageError(f"timm has no {loaded.kind} with these parts", fix="export the backbone: --part backbone")
    absolute = config.positions == "absolute"
    names, shape = _NAMES if absolute else _BEIT_NAMES, (config.embed_dim, config.depth, config.num_heads)
    name = names.get(shape, names[768, 12, 12])
    arguments: dict[str, Any] = {
        field: getattr(config, field) for field, usual in _REGISTERED.items() if getattr(config, field) != usual
    }
    if shape not in names:
        arguments |= dict(zip(("embed_dim", "depth", "num_heads"), shape, strict=True))
    if not absolute or config.init_values is not None:
        arguments["init_values"] = config.init_values or 0.0
    return Architecture(name, arguments | _pooling(loaded, absolute))


def _pooling(loaded: LoadedModel, absolute: bool) -> dict[str, Any]:
    """Pooling, and where the last norm is. A backbone pools the mean of its patches."""
    if isinstance(loaded.network, ImageClassifier):
        pool = "avg" if loaded.network.pooling == "mean" else "token"
        return {"num_classes": len(loaded.classes), "global_pool": pool}
    pooling: dict[str, Any] = {"num_classes": 0, "global_pool": "avg"}
    if absolute:
        return pooling | {"fc_norm": False} | ({} if has_norm(loaded.backbone) else {"final_norm": False})
    return pooling | {"use_fc_norm": not has_norm(loaded.backbone)}  # Beit has one of both norms


def write(loaded: LoadedModel, folder: Path) -> str:
    """Write weights and configuration. Returns the lines of Python that load them."""
    config, made = loaded.backbone.config, architecture(loaded)
    absolute = config.positions == "absolute"
    variant: ViT = (
        replace(config, k_bias=True) if absolute else replace(config, k_bias=False, positions="block_relative")
    )
    weights = to_timm(loaded.weights_as(variant), layer_scale_modules=absolute)
    if made.arguments.get("use_fc_norm"):
        width = torch.ones(config.embed_dim)
        weights |= {"fc_norm.weight": width, "fc_norm.bias": 0 * width}
    write_bytes(folder / _WEIGHTS, to_safetensors({name: value.clone() for name, value in weights.items()}))
    write_json(folder / "config.json", _config(loaded, made))
    last = tuple(range(max(config.depth - 3, 0), config.depth))
    return _SNIPPET.format(call=made.call("FOLDER"), last=last)


_SNIPPET = """import timm

model = {call}.eval()
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # the same
maps = timm.create_model("local-dir:FOLDER", pretrained=True, features_only=True, out_indices={last})  # of blocks
other = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=10)  # a new head
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
"""


def _config(loaded: LoadedModel, made: Architecture) -> dict[str, Any]:
    """What `create_model("local-dir:FOLDER")` reads."""
    shown, num_classes = loaded.preprocessing, made.arguments["num_classes"]
    arguments = {name: value for name, value in made.arguments.items() if name != "num_classes"}
    pretrained = {
        "input_size": [shown.channels, *shown.size],
        "fixed_input_size": True,
        "interpolation": shown.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": shown.mean,
        "std": shown.std,
        "num_classes": num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    names = {"label_names": list(loaded.classes)} if loaded.classes else {}
    return {
        "architecture": made.name,
        "num_classes": num_classes,
        "num_features": loaded.backbone.embed_dim,
        "global_pool": made.arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    } | names


@torch.no_grad()
def compare(loaded: LoadedModel, folder: Path, images: torch.Tensor) -> Pairs:
    """The outputs of our network and of timm's, loaded in both ways."""
    import timm

    made = architecture(loaded)
    by_path = timm.create_model(made.name, checkpoint_path=str(folder / _WEIGHTS), **made.arguments)
    by_folder = timm.create_model(f"local-dir:{folder}", pretrained=True)
    by_path.eval()
    by_folder.eval()
    shown, network = loaded.preprocessing.normalised(images), loaded.network
    if isinstance(network, ImageClassifier):
        logits = network(images)
        return {"logits": (logits, by_path(shown)), "logits, by folder": (logits, by_folder(shown))}
    features = loaded.backbone(images)
    tokens = torch.cat([features.cls[:, None], features.patches], dim=1)
    return {
        "features": (tokens, by_path.forward_features(shown)),
        "features, by folder": (tokens, by_folder.forward_features(shown)),
    }
