"""The base class of image tokenizers: a module that satisfies the `Tokenizer` protocol and has a configuration."""

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti.core.config import require
from smalti.core.contracts import Grid
from smalti.core.notebook import facts_table

MAX_VOCAB = 16384


class TokenizerConfig(Protocol):
    """The fields that every tokenizer's configuration has."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def in_chans(self) -> int: ...


class ImageTokenizer(nn.Module):
    """Images to visual tokens and back.

    Attributes:
        grid: rows and columns of tokens, where all images have the same; None: any.
    """

    grid: Grid | None = None

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.stride = config.vocab_size, config.stride

    def _repr_html_(self) -> str:
        facts = {
            "codebook": f"{self.vocab_size} visual tokens, one for {self.stride} x {self.stride} pixels",
            "channels": self.config.in_chans,
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }
        return facts_table(facts, f"{type(self.config).__name__}, an image tokenizer")

    def initialise_from(self, images: Tensor, order: Int[Tensor, "n"]) -> None:
        """Initialise from a sample of the training images.

        Args:
            images: B C H W, uint8 or float in [0, 1], sides multiples of the stride.
            order: a random permutation of at least as many numbers as there are patches in the sample.

        Raises:
            DataError: there is no patch with more than one colour.
        """
        raise NotImplementedError

    def encode(self, images: Tensor) -> Int[Tensor, "B h w"]:
        """The visual token at every position, in [0, V).

        Args:
            images: B C H W, uint8 or float in [0, 1], sides multiples of the stride.
        """
        raise NotImplementedError

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """The image that the tokens decode to, in [0, 1]."""
        raise NotImplementedError


def require_tokens(config: TokenizerConfig) -> None:
    """Check vocabulary size, stride and channels.

    Raises:
        UsageError: one of them is invalid; the message names it.
    """
    vocab_size, stride = config.vocab_size, config.stride
    require(2 <= vocab_size <= MAX_VOCAB, f"a vocabulary of {vocab_size}", f"use 2 to {MAX_VOCAB}")
    require(stride in (4, 8, 16), f"a stride of {stride} pixels", "use 4, 8 or 16")
    require(config.in_chans >= 1, f"{config.in_chans} channels", "use at least 1")
