"""Our networks with drawn weights against the same weights in the networks that people use: `make parity`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.functional.losses import masked_token_loss
from smalti.functional.positions import geometric_places, num_rows, resize_positions, resize_table
from smalti.models import vit
from smalti.models.mim import MaskedImageModel, build_mim
from smalti.models.vit import ViT

PAPER = ViT(img_size=(16, 24), patch_size=4, embed_dim=32, depth=3, num_heads=4)
BLOCKS = {"positions": "block_relative", "init_values": 0.3, "k_bias": False}
VOCABULARY = 19


def drawn(config: ViT) -> MaskedImageModel:
    """Every parameter counts: none is zero or one, and tables and LayerScale are large."""
    model = build_mim(config, VOCABULARY)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=1.0 if "table" in name else 0.1)
    return model


def pictures(config: ViT, num: int = 3) -> Tensor:
    return torch.rand(num, 3, *config.img_size, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def check_training(
    ours: nn.Module,
    theirs: nn.Module,
    our_loss: Callable[[], Tensor],
    their_loss: Callable[[], Tensor],
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    """The same loss, the same gradients, and the same weights after three steps of AdamW."""
    optimisers = [
        torch.optim.AdamW(m.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05) for m in (ours, theirs)
    ]
    for step in range(3):
        for loss, optimiser in zip((our_loss, their_loss), optimisers, strict=True):
            optimiser.zero_grad()
            loss().backward()
        torch.testing.assert_close(our_loss(), their_loss(), rtol=0, atol=1e-5 if step == 0 else 1e-4)
        if step == 0:
            expected = gradients(theirs)
            torch.testing.assert_close(renamed(gradients(ours)), expected, rtol=1e-4, atol=1e-5)
            assert all(gradient.any() for gradient in expected.values())
        for optimiser in optimisers:
            optimiser.step()
    ended = [{name: value.detach() for name, value in model.named_parameters()} for model in (ours, theirs)]
    torch.testing.assert_close(without_key_bias(renamed(ended[0])), without_key_bias(ended[1]), rtol=0, atol=1e-4)


def without_key_bias(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its true gradient is zero, and AdamW follows what rounding makes of that."""
    joint = {name: value.chunk(3) for name, value in weights.items() if name.endswith("qkv.bias")}
    return weights | {name: torch.cat([q, v]) for name, (q, _, v) in joint.items()}


def of_timm(config: ViT) -> Any:
    """The model of timm that has the names of this variant, without a head."""
    timm = pytest.importorskip("timm")
    sizes = {
        "img_size": config.img_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "num_classes": 0,
        "global_pool": "",
    }
    if config.positions == "absolute":
        return timm.models.vision_transformer.VisionTransformer(**sizes)
    return timm.models.beit.Beit(
        **sizes,
        init_values=config.init_values,
        use_abs_pos_emb=False,
        use_rel_pos_bias=config.positions == "block_relative",
        use_shared_rel_pos_bias=config.positions == "shared_relative",
    )


@pytest.mark.parametrize("config", [PAPER, vit.released(PAPER), ViT(**vars(PAPER) | BLOCKS)])
def test_features_gradients_and_training_are_those_of_timm(config: ViT) -> None:
    ours, theirs = drawn(config).backbone, of_timm(config)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are timm's
    images = pictures(config)
    with torch.no_grad():
        features = ours(images)
        both = torch.cat([features.cls[:, None], features.patches], dim=1)
        torch.testing.assert_close(both, theirs.forward_features(images * 2 - 1), rtol=0, atol=1e-5)
    target = torch.randn(both.shape, generator=torch.Generator().manual_seed(2))

    def our_loss() -> Tensor:
        features = ours(images)
        return F.mse_loss(torch.cat([features.cls[:, None], features.patches], dim=1), target)

    check_training(
        ours, theirs, our_loss, lambda: F.mse_loss(theirs.forward_features(images * 2 - 1), target), lambda names: names
    )


def transformers_names(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients of a masked image model under the names of transformers' BeitForMaskedImageModeling."""
    result = {}
    for name, value in values.items():
        renamed = name.removeprefix("backbone.")
        for ours, theirs in (_IN_BLOCKS if renamed.startswith("blocks.") else _ELSEWHERE).items():
            renamed = renamed.replace(ours, theirs)
        if "attn.qkv.weight" in renamed:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                result[renamed.replace("attn.qkv", f"attention.{part}_proj")] = chunk
        else:
            result[renamed] = value
    return result


_IN_BLOCKS = {
    "blocks.": "beit.layers.",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "gamma_": "lambda_",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.proj": "attention.o_proj",
}
_ELSEWHERE = {
    "cls_token": "beit.embeddings.cls_token",
    "mask_token": "beit.embeddings.mask_token",
    "patch_embed.proj": "beit.embeddings.patch_embeddings.projection",
    "rel_pos_bias": "beit.shared_position_bias",
    "norm.": "layernorm.",
    "head.": "lm_head.",
}


def of_transformers(config: ViT) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.embed_dim,
        "image_size": config.img_size[0],
        "patch_size": config.patch_size,
        "layer_norm_eps": 1e-6,  # its default is 1e-12
        "use_mask_token": True,
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": True,  # otherwise there are two last norms
        "layer_scale_init_value": config.init_values,
        "drop_path_rate": 0.0,
    }
    return transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**settings)).train()


def test_masked_image_modeling_is_that_of_transformers() -> None:
    config = vit.released(ViT(**vars(PAPER) | {"img_size": (16, 16)}))  # its tables of other shapes are transposed
    ours, theirs = drawn(config), of_transformers(config)
    theirs.load_state_dict(transformers_names(dict(ours.named_parameters())))
    images, rng = pictures(config), torch.Generator().manual_seed(3)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    index = torch.stack([torch.randperm(16, generator=rng)[:6].sort().values for _ in range(3)])
    mask.scatter_(1, index, True)
    ids = torch.randint(VOCABULARY, (3, 6), generator=rng)
    with torch.no_grad():
        expected = theirs(images * 2 - 1, bool_masked_pos=mask).logits
        torch.testing.assert_close(ours(images, mask, index).flatten(0, 1), expected[mask], rtol=0, atol=1e-5)

    def our_loss() -> Tensor:
        loss_sum, weight = masked_token_loss(ours(images, mask, index), ids, torch.ones(3, 6))
        return loss_sum / weight

    def their_loss() -> Tensor:
        return theirs(images * 2 - 1, bool_masked_pos=mask, labels=ids.flatten()).loss

    check_training(ours, theirs, our_loss, their_loss, transformers_names)


def test_tables_for_another_grid_are_the_spline_of_scipy() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    old, new = (14, 14), (24, 24)
    table = torch.randn(num_rows(old), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = geometric_places(13, 23)
    places = torch.cat([-half.flip(0), torch.zeros(1, dtype=torch.float64), half]).numpy()
    wanted = torch.arange(-23.0, 24.0).double().clamp(float(places[0]), float(places[-1])).numpy()
    body = table[:-3].reshape(27, 27, 3).numpy()
    for axis in (0, 1):
        body = interpolate.make_interp_spline(places, body, k=3, axis=axis)(wanted)
    expected = torch.tensor(body).reshape(-1, 3)
    torch.testing.assert_close(resize_table(table, old, new)[:-3], expected, rtol=0, atol=1e-8)


def test_positions_for_another_grid_are_those_of_timm() -> None:
    pytest.importorskip("timm")
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 1 + 3 * 5, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table, [6, 4], [3, 5], antialias=False)
    torch.testing.assert_close(resize_positions(table, (3, 5), (6, 4)), expected)
