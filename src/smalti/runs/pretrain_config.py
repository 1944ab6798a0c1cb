"""`smalti pretrain`: stage two, masked image modeling on the tokens of a trained tokenizer.

Its configuration.
"""

from dataclasses import dataclass

import torch

from smalti.core.config import kind_name, require, setting
from smalti.data.transforms.views import ColorJitter
from smalti.functional.masking import Blockwise, Random, Rolled
from smalti.functional.published_masking import Algorithm1, Release
from smalti.models.decoder import CrossAttention, Linear
from smalti.models.patch_aggregation import PatchAggregation
from smalti.runs.training_run import BackboneRun
from smalti.tokenizers.image_tokenizer import ImageTokenizer
from smalti.training.masked_batches import MaskedViews
from smalti.training.parallel import Parallel
from smalti.training.targets import Pixels, SoftTokens, Tokens


@dataclass(frozen=True)
class Online:
    """Labelled images that the backbone is measured on while it trains; none by default."""

    data: str = setting("", "labelled DATA, as a folder of class folders; empty: no evaluation while training")
    every: int = setting(500, "steps between two measurements")
    limit: int = setting(2000, "labelled images at most, an even sample")

    def __post_init__(self) -> None:
        require(self.every >= 1, f"online.every is {self.every}", "use at least 1")
        require(self.limit >= 2, f"online.limit is {self.limit}", "use at least 2")


@dataclass(frozen=True)
class Pretrain(BackboneRun):
    """Everything about a pretraining run."""

    tokenizer: str = setting("", "the run folder of the tokenizer", resume="digest")
    second_tokenizer: str = setting(
        "", "a run folder whose tokens are predicted too, by a head of their own; empty: none", resume="digest"
    )
    accept_tokenizer: bool = setting(False, "go on with a tokenizer that looks collapsed", resume="free")
    init_from: str = setting("", "start from: a run, or a ViT or BEiT of timm or transformers; empty: drawn")
    freeze_backbone_steps: int = setting(
        0, "first steps in which all but the backbone learns (mask token, decoder, head); with init_from"
    )
    masking: Blockwise | Rolled | Release | Algorithm1 | Random = Blockwise()
    decoder: Linear | CrossAttention = Linear()
    target: Tokens | SoftTokens | Pixels = Tokens()
    patch_aggregation: PatchAggregation = PatchAggregation()
    equal_images: bool = setting(False, "each image counts the same; else each masked patch", "BEiT's code: patches")
    jitter: ColorJitter = ColorJitter()
    num_views: int | None = setting(None, "views of an image, in turn, so that a token cache pays; none: always new")
    masks_per_image: int = setting(
        1, "masks of a view, tokenized once; a batch counts each as an image", "data2vec 2.0"
    )
    fp32_tokens: bool = setting(
        False, "the tokenizer computes in float32; else as the run does", "released code: outside autocast"
    )
    token_cache: str = setting("", "a folder of visual tokens, as of smalti tokenize; empty: none", resume="free")
    online: Online = Online()
    rounds: int = setting(1, "the steps in so many runs; each predicts clusters of the features of the one before")
    rounds_go_on: bool = setting(False, "each round starts from the weights of the one before; else from new ones")
    reference: bool = setting(True, "say where the loss lies beside the nearest of our own runs", resume="free")
    parallel: Parallel = setting("ddp", "of several processes: a copy of the network each, or with fsdp a part")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masking.count(self.backbone.grid)  # raises if the grid has fewer patches than are to be masked
        self.decoder.num_visible(self.masking, self.backbone.grid)  # raises if the number is not determined
        if self.patch_aggregation.depth:
            self.patch_aggregation.layer_of(self.backbone)  # raises if there is no such block
            mixed = isinstance(self.decoder, CrossAttention) and self.decoder.mix_layers
            require(not mixed, "patch aggregation, and a decoder that mixes layers", "leave one of them out")
        require(self.num_views is None or self.num_views >= 1, f"num_views is {self.num_views}", "use at least 1")
        require(
            self.masks_per_image >= 1 and self.plan.batch_size % self.masks_per_image == 0,
            f"masks_per_image is {self.masks_per_image}, and a batch has {self.plan.batch_size} images",
            "use a divisor of --plan.batch-size",
        )
        frozen = f"freeze_backbone_steps is {self.freeze_backbone_steps}"
        require(self.freeze_backbone_steps >= 0, frozen, "use at least 0")
        require(
            bool(self.init_from) or self.freeze_backbone_steps == 0,
            f"{frozen}, and the backbone starts from nothing",
            "use --init-from MODEL too",
        )
        require(
            not self.token_cache or isinstance(self.target, Tokens),
            f"a token cache serves no {type(self.target).__name__}: it holds the most likely token of each patch",
            "leave --token-cache out, or use --target tokens",
        )
        require(
            self.rounds == 1 or 2 <= self.rounds <= self.plan.steps, f"rounds is {self.rounds}", "use 1 to --plan.steps"
        )
        require(
            self.rounds == 1 or not self.token_cache,
            "a token cache holds the tokens of one round",
            "leave --token-cache out, or begin each round by itself",
        )
        require(
            not self.second_tokenizer or (isinstance(self.target, Tokens) and self.rounds == 1),
            f"a second tokenizer, with target {kind_name(type(self.target))} and {self.rounds} rounds",
            "it is for --target tokens and a single round",
        )
        pixels = isinstance(self.target, Pixels)
        require(not (self.tokenizer and pixels), "pixels are predicted without a tokenizer", "leave --tokenizer out")

    def compiles_loss(self, device: torch.device) -> bool:
        """Whether the loss is compiled too. With mask tokens in the encoder it never is: such runs keep their bits."""
        return isinstance(self.decoder, CrossAttention) and isinstance(self.target, Tokens) and self.compiles(device)

    def views(self, tokenizer: ImageTokenizer | None, second: ImageTokenizer | None = None) -> MaskedViews:
        """The views of images that the run uses."""
        return MaskedViews(
            self.crop,
            self.jitter,
            self.masking,
            self.backbone,
            tokenizer,
            self.seed,
            self.num_views,
            self.masks_per_image,
            self.data.full_decode,
            self.fp32_tokens,
            second,
        )
