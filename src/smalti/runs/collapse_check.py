"""The gate before stage two: a collapsed tokenizer teaches nothing, so it is refused before hours are spent on it."""

import torch
from torch import Tensor

from smalti.core.compute import Compute
from smalti.core.contracts import Tokenizer
from smalti.core.errors import RefusedError
from smalti.core.log import Log
from smalti.data.tokens import encode
from smalti.evaluation.token_sample import constant, fit_kmeans_baseline, token_sample
from smalti.functional.metrics import CodebookUse, codebook_use

_TOKENS_A_CODE, _FEWEST_WINDOW = 12, 20_000
_LEAST_PERPLEXITY, _LEAST_USED = 0.6, 0.5
_ENOUGH_A_CODE = 10
"""With so many tokens a code, a codebook that is used evenly shows all of its codes."""
_FEWEST = 100
"""With so many tokens the ratio of two perplexities is known to about 15 %; with fewer there is no verdict."""
_FIX = (
    "train it again with more --relaxation.spread, a smaller --tokenizer.vocab-size, more images or more --plan.steps, "
    "or go on all the same with --accept-tokenizer"
)


def gate(
    tokenizer: Tokenizer, held_out: Tensor, train: Tensor, compute: Compute, log: Log, *, accept: bool = False
) -> None:
    """Let a tokenizer pass, or refuse it: see `faults`. Seconds; nothing of the run depends on it.

    Args:
        held_out, train: images as the tokenizer is going to see them, B C H W; the second ones fit the yardstick.
        accept: say what is wrong, and let it pass.

    Raises:
        RefusedError: it has collapsed; what was measured, and what to change.
    """
    seen = token_sample(held_out, tokenizer.stride, max(_FEWEST_WINDOW, _TOKENS_A_CODE * tokenizer.vocab_size))
    keep = ~constant(seen, tokenizer.stride)
    yardstick = fit_kmeans_baseline(train, tokenizer.vocab_size, tokenizer.stride)
    if yardstick is None or int(keep.sum()) < _FEWEST:
        log.say(f"tokenizer: {int(keep.sum())} held-out tokens are too few to judge it by")
        return
    ids = torch.cat([encode(part.to(compute.device), tokenizer, compute).cpu() for part in seen.split(1024)])
    use = codebook_use(ids, tokenizer.vocab_size, keep)
    kmeans = codebook_use(yardstick.encode(seen).flatten(1), tokenizer.vocab_size, keep)
    measured = (
        f"{use.used:.1%} of {tokenizer.vocab_size} codes and a perplexity of {use.perplexity:.1f} on {use.tokens} "
        f"held-out tokens, where k-means on the same patches has {kmeans.used:.1%} and {kmeans.perplexity:.1f}"
    )
    found = faults(use, kmeans, tokenizer.vocab_size)
    if found and not accept:
        raise RefusedError(f"the tokenizer has collapsed: {' and '.join(found)}", cause=f"it has {measured}", fix=_FIX)
    log.say(f"tokenizer: {measured}" + (f"; collapsed, and accepted: {' and '.join(found)}" if found else ""))


def faults(use: CodebookUse, kmeans: CodebookUse, vocab_size: int) -> list[str]:
    """What speaks against a tokenizer; nothing where it may pass.

    Its perplexity must be 0.6 of that of k-means at least. Both are counted on the same patches, so the rule holds for
    few tokens too, where neither can be high. Half of the codes must be used. With fewer than ten tokens a code even a
    perfect codebook does not show all of its codes, so there it is half of those that k-means uses on these patches.
    """
    found = []
    if use.perplexity < _LEAST_PERPLEXITY * kmeans.perplexity:
        found.append(f"its perplexity is {use.perplexity / kmeans.perplexity:.2f} of k-means' (least: 0.6)")
    enough = use.tokens >= _ENOUGH_A_CODE * vocab_size
    if use.used < _LEAST_USED * (1.0 if enough else kmeans.used):
        than = "codes" if enough else "codes that k-means uses"
        found.append(f"less than half of the {than} are used")
    return found
