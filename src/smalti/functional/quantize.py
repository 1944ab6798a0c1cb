"""From scores to visual tokens: relaxed while training, the most likely one afterwards."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gumbel_softmax(
    logits: Float[Tensor, "*B V"], gumbel: Float[Tensor, "*B V"], temperature: Float[Tensor, ""] | float
) -> Float[Tensor, "*B V"]:
    """A relaxed sample of the categorical distribution that `logits` stand for: softmax((logits + g) / τ).

    Args:
        logits: unnormalised log-probabilities of the V codes.
        gumbel: independent standard Gumbel noise of the same shape (an input, so that a step can be repeated exactly).
        temperature: τ > 0; as τ falls to 0 the sample becomes one-hot.

    Returns:
        Non-negative weights of the codes, summing to 1; gradients flow through them (no straight-through).

    Reference: Jang et al. 2017, eq. 2; Maddison et al. 2017; BEiT §2.1.2; DALL-E, appendix A.2.
    """
    return F.softmax((logits + gumbel) / temperature, dim=-1)


def straight_through(values: Float[Tensor, "*B"], points: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """`values` on the way forward; on the way back the gradient reaches `points` as if they had been used.

    Reference: Bengio, Léonard and Courville 2013; van den Oord et al. 2017, §3.2.
    """
    return points + (values - points).detach()
