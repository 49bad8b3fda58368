"""Cross-entropy over logits and its gradient, which may take the logits' memory.

loss     = scale * sum_i (logsumexp(z_i) - z_i[t_i])
d_loss/dz = scale * (softmax(z_i) - onehot(t_i))
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

if find_spec("triton") is not None:
    from slideformer.kernels.cross_entropy_triton import cross_entropy_triton

# Nodes of autograd whose backward does not read their output, so that it may be overwritten.
OUTPUT_NOT_SAVED = (
    "HeadMatmulBackward",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "AddBackward0",
    "MulBackward0",
    "ToCopyBackward0",
)


def cross_entropy(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Loss (fp32 scalar) and gradient [n, vocabulary] in the logits' dtype.

    The logits are spent: where autograd does not need them for the operation that made them, the gradient takes their
    memory.

    Args:
        logits: [n, vocabulary], rows contiguous.
        targets: int64 [n], all valid.
        scale: multiplies loss and gradient.
    """
    values = logits.detach()
    if values.is_cuda:
        node = logits.grad_fn
        spendable = node is None or node.name() in OUTPUT_NOT_SAVED
        gradient = values if spendable else torch.empty_like(values)
        loss = cross_entropy_triton(values, targets, scale, gradient)
        if spendable and node is not None:
            torch.autograd.graph.increment_version(logits)  # if something saved them after all, autograd refuses
        return loss, gradient
    return cross_entropy_reference(values, targets, scale)


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss alone (fp32 scalar), summed; the logits are spent.

    Args:
        logits: [n, vocabulary], rows contiguous, outside of autograd.
        targets: int64 [n], all valid.
    """
    if logits.is_cuda:  # one pass in fp32 without a copy; the gradient it leaves lies where the logits were
        return cross_entropy(logits, targets, 1.0)[0]
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def cross_entropy_reference(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, computed in fp32."""
    z = logits.float()
    log_sum = torch.logsumexp(z, dim=-1)
    rows = torch.arange(len(targets), device=logits.device)
    loss = (log_sum - z[rows, targets]).sum() * scale
    gradient = torch.exp(z - log_sum[:, None])
    gradient[rows, targets] -= 1
    return loss, gradient.mul_(scale).to(logits.dtype)
