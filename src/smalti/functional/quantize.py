"""From logits to visual tokens: Gumbel-softmax, and the straight-through gradient."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gumbel_softmax(
    logits: Float[Tensor, "*B V"], gumbel: Float[Tensor, "*B V"], temperature: Float[Tensor, ""] | float
) -> Float[Tensor, "*B V"]:
    """A relaxed sample of the categorical distribution softmax(logits): softmax((logits + g) / τ).

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
    """`values` in the forward pass; in the backward pass the gradient goes to `points`, as if they were the output.

    Reference: Bengio, Léonard and Courville 2013; van den Oord et al. 2017, §3.2.
    """
    return points + (values - points).detach()
