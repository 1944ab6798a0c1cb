"""How well a tokenizer keeps an image, and how it uses its codebook, on held-out images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.functional.metrics import CodebookUse, codebook_use, psnr
from smalti.functional.patches import constant_patches
from smalti.models.vit import as_unit_range


@dataclass(frozen=True)
class TokenizerResult:
    """Quality of a tokenizer.

    Attributes:
        psnr_db: mean over images of the PSNR of hard-token reconstructions, in dB.
        codebook: usage over positions whose patch is not constant.
        unigram_entropy: of all positions, in nats: what masked image modeling has to beat.
        constant_share: share of the positions whose patch is constant.
    """

    psnr_db: float
    codebook: CodebookUse
    unigram_entropy: float
    constant_share: float

    def as_dict(self) -> dict[str, float]:
        """The numbers under the names that results and `--json` use."""
        return {
            "psnr_db": self.psnr_db,
            "codebook_usage": self.codebook.used,
            "perplexity": self.codebook.perplexity,
            "top_share": self.codebook.top_share,
            "unigram_entropy_nats": self.unigram_entropy,
            "constant_share": self.constant_share,
        }


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: Tokenizer, images: Tensor, compute: Compute, batch_size: int = 500
) -> TokenizerResult:
    """Encode, decode and count over held-out images (uint8 or [0, 1])."""
    ids, ratios, constant = [], [], []
    for start in range(0, len(images), batch_size):
        batch = as_unit_range(images[start : start + batch_size].to(compute.device))
        with compute.autocast():
            codes = tokenizer.encode(batch)
            pictures = tokenizer.decode(codes)
        ids.append(codes.flatten(1).cpu())
        ratios.append(psnr(batch, pictures.float()).cpu())
        constant.append(constant_patches(batch, tokenizer.stride).cpu())
    all_ids, all_constant = torch.cat(ids), torch.cat(constant)
    return TokenizerResult(
        psnr_db=float(torch.cat(ratios).mean()),
        codebook=codebook_use(all_ids, tokenizer.vocab_size, ~all_constant),
        unigram_entropy=codebook_use(all_ids, tokenizer.vocab_size).entropy,
        constant_share=float(all_constant.double().mean()),
    )
