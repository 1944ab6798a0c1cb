"""A feature pyramid for a plain Transformer, and the UPerNet head that merges it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_POOLED = (1, 2, 3, 6)
"""Rows and columns to which the coarsest map is pooled."""
_IN_A_GROUP = 8


def level_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of eight channels; one group of all channels where eight does not divide their number."""
    return nn.GroupNorm(1 if channels % _IN_A_GROUP else channels // _IN_A_GROUP, channels)


def _conv(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False), level_norm(width), nn.ReLU()
    )


class FeaturePyramid(nn.Module):
    """Turns four maps of the same resolution into maps of 4, 2, 1 and 1/2 times that resolution.

    Reference: released code, semantic_segmentation/backbone/beit.py: two transposed convolutions with norm and GELU
        between them, one, nothing, and max-pooling.
    Differs: an odd side is rounded up when it is halved.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

        def double() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)

        self.levels = nn.ModuleList(
            [
                nn.Sequential(double(), level_norm(dim), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, maps: list[Float[Tensor, "B D h w"]]) -> list[Float[Tensor, "B D _h _w"]]:
        return [level(feature) for level, feature in zip(self.levels, maps, strict=True)]


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, top-down addition of coarse maps to finer ones, and fusion of all of them.

    Reference: Xiao et al. 2018 (UPerNet), fig. 4; Zhao et al. 2017 (PSPNet), §3.2 for the pooling.
    """

    def __init__(self, dim: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(_conv(dim, width, 1) for _ in _POOLED)
        self.bottleneck = _conv(dim + len(_POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(_conv(dim, width, 1) for _ in range(3))
        self.output = nn.ModuleList(_conv(width, width, 3) for _ in range(3))
        self.merge = _conv(4 * width, width, 3)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: list[Float[Tensor, "B D _h _w"]]) -> Float[Tensor, "B classes h w"]:
        """Logits over the classes at the resolution of the finest map."""
        merged = self._pool(levels[-1])
        outputs = [merged]
        for lateral, output, level in reversed(list(zip(self.lateral, self.output, levels[:-1], strict=True))):
            merged = lateral(level) + _scaled(merged, level)
            outputs.append(output(merged))
        return self.classify(self.merge(torch.cat([_scaled(part, levels[0]) for part in reversed(outputs)], dim=1)))

    def _pool(self, coarse: Float[Tensor, "B D h w"]) -> Float[Tensor, "B width h w"]:
        parts = [
            _scaled(conv(F.adaptive_avg_pool2d(coarse, size)), coarse)
            for conv, size in zip(self.pooled, _POOLED, strict=True)
        ]
        return self.bottleneck(torch.cat([coarse, *parts], dim=1))


def _scaled(part: Float[Tensor, "B C h w"], like: Float[Tensor, "B _C H W"]) -> Float[Tensor, "B C H W"]:
    return F.interpolate(part, like.shape[-2:], mode="bilinear", align_corners=False)
