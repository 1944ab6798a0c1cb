"""What transformers computes with a network that was imported from its format, as a check of the import.

A config.json may name code to fetch and run, other files, and networks of any size. Only the settings of the
architecture are taken from it, after they were compared with our network; transformers is given these and the weights,
and reads no file.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smalti.core.errors import CheckpointError
from smalti.exporting.huggingface import image_size, sizes_of
from smalti.models.vit import ViT

_CLASSES = {"beit": ("BeitConfig", "BeitModel"), "vit": ("ViTConfig", "ViTModel")}
_SWITCHES = {
    "beit": (
        "use_absolute_position_embeddings",
        "use_relative_position_bias",
        "use_shared_relative_position_bias",
        "use_mean_pooling",
    ),
    "vit": ("qkv_bias",),
}


@torch.no_grad()
def last_hidden_state(settings: Mapping[str, Any], vit: ViT, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """The last hidden state of transformers' network without its pooler.

    Args:
        weights: by their names in the file.
        pixels: normalised.

    Raises:
        CheckpointError: config.json describes another network than the weights.
    """
    import transformers

    kind = settings["model_type"]
    described, network = (getattr(transformers, name) for name in _CLASSES[kind])
    switches = {name: bool(settings[name]) for name in _SWITCHES[kind] if name in settings}
    config = described(**_checked(settings, vit, described()), **switches)
    if kind == "beit":
        scaled = any(name.endswith("lambda_1") for name in weights)
        masked = any(name.endswith("embeddings.mask_token") for name in weights)
        config.layer_scale_init_value, config.use_mask_token = 0.1 if scaled else 0.0, masked
    transformers.utils.logging.disable_progress_bar()
    model, told = network.from_pretrained(
        None, config=config, state_dict=dict(weights), add_pooling_layer=False, output_loading_info=True
    )
    if missing := sorted(told["missing_keys"]):
        raise CheckpointError(f"the weights have no {missing[0]}", cause="config.json describes another network")
    model.eval()
    found: Tensor = model(pixels).last_hidden_state
    return found


def _checked(settings: Mapping[str, Any], vit: ViT, usual: Any) -> dict[str, Any]:
    """Sizes of our network by the names of config.json, where that has the same or leaves the usual ones."""
    sizes = sizes_of(vit)
    for name, value in sizes.items():
        found = settings.get(name, getattr(usual, name))
        if type(found) is not int or found != value:
            raise CheckpointError(f"config.json has the {name} '{str(found)[:40]}'", cause=f"the weights have {value}")
    epsilon = settings.get("layer_norm_eps", usual.layer_norm_eps)
    if type(epsilon) is not float or not 0 <= epsilon < 1:
        raise CheckpointError(f"config.json has the layer_norm_eps '{str(epsilon)[:40]}'", cause="it makes no sense")
    return sizes | {"image_size": image_size(vit), "layer_norm_eps": epsilon}
