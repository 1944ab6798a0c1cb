"""Weights of a masked image model of ours under the names that other programs give them."""

from typing import Any

import torch
from torch import Tensor

from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT

VOCABULARY = 19


def drawn(config: ViT, seed: int = 0) -> MaskedImageModel:
    """Every parameter counts: none is zero or one, and tables and LayerScale are large."""
    model = build_mim(config, VOCABULARY)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=1.0 if "table" in name else 0.1)
    return model.eval()


def backbone_of(model: MaskedImageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.backbone.state_dict().items()}


def as_timm_vit(model: MaskedImageModel) -> dict[str, Tensor]:
    """A classifier of timm's VisionTransformer, which has LayerScale as modules."""
    named = {name.replace("gamma_1", "ls1.gamma"): value for name, value in backbone_of(model).items()}
    named = {name.replace("gamma_2", "ls2.gamma"): value for name, value in named.items()}
    return named | {"head.weight": torch.zeros(3, model.backbone.embed_dim), "head.bias": torch.zeros(3)}


def as_timm_beit(model: MaskedImageModel) -> dict[str, Tensor]:
    """A classifier of timm's Beit: its last norm is one of pooled patches."""
    named = {name: value for name, value in backbone_of(model).items() if not name.startswith("norm.")}
    width = torch.ones(model.backbone.embed_dim)
    return named | {"fc_norm.weight": width, "fc_norm.bias": width, "head.weight": width[None], "head.bias": width[:1]}


def as_released(model: MaskedImageModel) -> dict[str, Tensor]:
    """A checkpoint of the released pretraining code, with its index of the shared table."""
    assert model.mask_token is not None
    named = backbone_of(model) | {"mask_token": model.mask_token.detach().clone()}
    head = {f"lm_head.{name}": value for name, value in model.head.state_dict().items()}
    index = {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}
    return named | head | (index if model.backbone.rel_pos_bias is not None else {})


def as_huggingface(model: MaskedImageModel, prefix: str, **more: Tensor) -> dict[str, Tensor]:
    """What `save_pretrained` writes of a bare BEiT or ViT, or of one inside another model (`prefix`), and `more`."""
    result = {}
    for name, value in backbone_of(model).items():
        if name.startswith("norm."):
            result[prefix + name.replace("norm.", "layernorm.")] = value
        elif not name.startswith("blocks."):
            result[prefix + _ELSEWHERE[name]] = value
        else:
            _, block, rest = name.split(".", 2)
            layer = f"{prefix}encoder.layer.{block}."
            if rest in ("attn.qkv.weight", "attn.qkv.bias"):
                kind = rest.split(".")[-1]
                for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    result[f"{layer}attention.attention.{part}.{kind}"] = chunk.clone()
            else:
                result[layer + _IN_BLOCKS[rest]] = value
    return result | more


def huggingface_config(config: ViT, model_type: str) -> dict[str, Any]:
    """The part of config.json that matters here."""
    height, width = config.img_size
    return {
        "model_type": model_type,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu",
    }


_ELSEWHERE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "rel_pos_bias.relative_position_bias_table": "encoder.relative_position_bias.relative_position_bias_table",
}
_IN_BLOCKS = {
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "attn.relative_position_bias_table": "attention.attention.relative_position_bias.relative_position_bias_table",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "mlp.fc1.weight": "intermediate.dense.weight",
    "mlp.fc1.bias": "intermediate.dense.bias",
    "mlp.fc2.weight": "output.dense.weight",
    "mlp.fc2.bias": "output.dense.bias",
}
