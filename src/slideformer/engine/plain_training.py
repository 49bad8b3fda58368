"""A few steps in plain PyTorch: what the engine is compared with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slideformer.data.batches import Batch
from slideformer.data.chat import IGNORED
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes


@dataclass(frozen=True)
class Training:
    """What a few steps came to: losses, the first step's gradients where there are any, and the last weights."""

    losses: list[float]
    gradients: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    def furthest_from(self, other: "Training") -> float:
        """The largest absolute difference of a weight."""
        return max(float((value - other.weights[name]).abs().max()) for name, value in self.weights.items())


def plain_training(
    decoder: Decoder, model: nn.Module, batches: list[Batch], hyper: AdamWStep, sizes: Sizes
) -> Training:
    """A step on each batch, of `model` in place.

    Args:
        decoder: says what is frozen, what does not decay, and what draws at random.
        sizes: the micro-batches of the engine, whose random numbers are drawn here too.
    """
    parameters = {name: p for name, p in model.named_parameters()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in decoder.frozen)
    groups = [
        {"params": [p for n, p in parameters.items() if (n in decoder.undecayed) == free], "weight_decay": decay}
        for free, decay in ((False, hyper.weight_decay), (True, 0.0))
    ]
    betas = (hyper.beta1, hyper.beta2)
    optimizer = torch.optim.AdamW(groups, lr=hyper.learning_rate, betas=betas, eps=hyper.epsilon)
    losses, gradients = [], {}
    for k, batch in enumerate(batches):
        losses.append(_backward(decoder, model, batch, sizes, seed=k + 1))
        gradients = gradients or {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return Training(losses, gradients, {name: p.detach() for name, p in parameters.items()})


def _backward(decoder: Decoder, model: nn.Module, batch: Batch, sizes: Sizes, seed: int) -> float:
    """Loss and gradients of one step, by micro-batches; what is drawn at random is what the engine draws."""
    total = 0.0
    for m, micro_batch in enumerate(batch.split(sizes.micro_batch_size)):
        with _seeded(decoder, model, (seed * sizes.micro_batches + m) * (decoder.depth + 1)):
            logits = model(input_ids=micro_batch.input_ids, use_cache=False).logits.flatten(0, 1).float()
        loss = F.cross_entropy(logits, micro_batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
        loss = loss / batch.trained_tokens
        loss.backward()
        total += float(loss.detach())
    return total


@contextmanager
def _seeded(decoder: Decoder, model: nn.Module, seed: int) -> Iterator[None]:
    """Within, a forward draws from this seed, and each of its blocks from one of its own."""
    torch.manual_seed(seed)
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, i=i: torch.manual_seed(seed + i + 1) and None)
        for i, name in enumerate(decoder.block_names)
        if decoder.draws_at_random
    ]
    yield
    for hook in hooks:
        hook.remove()
