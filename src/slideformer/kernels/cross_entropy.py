"""Cross-entropy of logits, summed: loss = scale * sum_i (logsumexp(z_i) - z_i[target_i])."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_sum(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """scale * sum over tokens of the negative log-likelihood, in fp32.

    Args:
        logits: [n, vocabulary], any float dtype.
        targets: int64 [n].
        scale: multiplies the sum, and with it the gradient.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum") * scale
