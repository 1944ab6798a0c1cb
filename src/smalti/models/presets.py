"""Backbones of the usual sizes, for an image size and a patch size in pixels.

Each is the paper's variant: absolute positions, no LayerScale; `released` turns it into that of the released code. The
smaller ones are initialised differently, since the paper's range of weights suits width 768.
"""

from dataclasses import replace

from smalti.models.vit import ViT


def nano(img_size: tuple[int, int] = (28, 28), patch_size: int = 4) -> ViT:
    """Width 64, 4 blocks: 0.2 M parameters, minutes on a CPU."""
    return ViT(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=64,
        depth=4,
        num_heads=2,
        drop_path_rate=0.0,
        init="xavier",
        pos_init="sincos",
    )


def tiny(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 192, 12 blocks: 5.5 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size, embed_dim=192, num_heads=3, init="width")


def small(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 384, 12 blocks: 21.7 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size, embed_dim=384, num_heads=6, init="width")


def base(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 768, 12 blocks: BEiT-B, 85.8 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size)


def large(img_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViT:
    """Width 1024, 24 blocks: BEiT-L, 303.3 M parameters."""
    return ViT(img_size=img_size, patch_size=patch_size, embed_dim=1024, depth=24, num_heads=16)


def released(backbone: ViT) -> ViT:
    """The variant of the released code, at the same size.

    It has a relative position bias that all blocks share, LayerScale (0.1, and 1e-5 from 24 blocks on) and no bias of
    keys. Initialisation `uniform` becomes `trunc1`; others are kept.

    Reference: released code, modeling_pretrain.py and its README.
    """
    return replace(
        backbone,
        positions="shared_relative",
        init_values=0.1 if backbone.depth < 24 else 1e-5,
        k_bias=False,
        init="trunc1" if backbone.init == "uniform" else backbone.init,
        pos_init="uniform",
    )
