"""The two files of the published DALL-E tokenizer, encoder.pkl and decoder.pkl, each a pickled module."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from smalti.core.errors import CheckpointError, UsageError
from smalti.tokenizers.dalle import DallE, DallETokenizer
from smalti.weights.saved_network import SavedNetwork, read_network

_ENCODER, _DECODER = "dall_e.encoder.Encoder", "dall_e.decoder.Decoder"
_TORCH_PARTS = (
    "container.Sequential",
    "activation.ReLU",
    "linear.Identity",
    "pooling.MaxPool2d",
    "upsampling.Upsample",
)
_CLASSES = frozenset(
    {_ENCODER, _DECODER, "dall_e.encoder.EncoderBlock", "dall_e.decoder.DecoderBlock", "dall_e.utils.Conv2d"}
    | {f"torch.nn.modules.{part}" for part in _TORCH_PARTS}
)
_LAYERS = {
    _ENCODER: {"blocks.input": "embed", "blocks.output.conv": "to_logits"},
    _DECODER: {"blocks.input": "codebook", "blocks.output.conv": "to_pixels"},
}
_GROUPS = {_ENCODER: "encoder", _DECODER: "decoder"}
_KINDS = {"w": "weight", "b": "bias"}


def read_dalle(paths: Sequence[Path]) -> tuple[DallE, dict[str, Tensor]]:
    """Configuration and weights of the tokenizer, read without running code in the files.

    Args:
        paths: the encoder's and the decoder's file, in any order.

    Raises:
        CheckpointError: they are not encoder and decoder of one such tokenizer, are damaged, or refer to anything else.
    """
    names = " and ".join(path.name for path in paths)
    networks = {network.kind: network for network in (read_network(path, _CLASSES) for path in paths)}
    if networks.keys() != {_ENCODER, _DECODER}:
        found = " and ".join(sorted(kind.split(".")[-1] for kind in networks))
        raise CheckpointError(
            f"{names} hold {found}", cause="both halves are needed", fix="encoder.pkl and decoder.pkl"
        )
    weights = {name: value for network in networks.values() for name, value in _renamed(network).items()}
    try:
        config = _infer(weights)
    except (KeyError, ValueError, UsageError) as error:
        cause = str(error) if isinstance(error, UsageError) else "layers are missing"
        raise CheckpointError(f"{names} hold no DALL-E tokenizer", cause=cause, fix="get the files again") from None
    _check(config, weights, names)
    return config, weights


def _renamed(network: SavedNetwork) -> dict[str, Tensor]:
    """Weights by our names: blocks.group_1. ... .conv_1.w becomes encoder.group_1.block_1.res_path.conv_1.weight."""
    renamed = {}
    for name, value in network.parameters.items():
        layer, _, kind = name.rpartition(".")
        in_group = f"{_GROUPS[network.kind]}.{layer.removeprefix('blocks.')}"
        renamed[_LAYERS[network.kind].get(layer, in_group) + "." + _KINDS.get(kind, kind)] = value
    return renamed


def _infer(weights: dict[str, Tensor]) -> DallE:
    parts = [name.split(".") for name in weights if name.startswith("encoder.group_")]
    width, in_chans = weights["embed.weight"].shape[:2]
    code_width, vocab_size = weights["codebook.weight"].shape[:2]
    return DallE(
        vocab_size=vocab_size,
        stride=2 ** (len({group for _, group, *_ in parts}) - 1),
        in_chans=in_chans,
        width=width,
        depth=len({block for _, group, block, *_ in parts if group == "group_1"}),
        code_width=code_width,
    )


def _check(config: DallE, weights: dict[str, Tensor], names: str) -> None:
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in DallETokenizer(config).named_parameters()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    infinite = [f"{name} is not finite" for name, value in weights.items() if not torch.isfinite(value).all()]
    if differing or infinite:
        more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
        cause = ", ".join(differing[:3] + more + infinite[:1])
        raise CheckpointError(f"{names} do not fit together", cause=cause, fix="get both files again")
