"""Before the first step: a tiny copy of the architecture is trained here and by plain PyTorch, and compared."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from slideformer.data.batches import Batch, collate, collate_packed
from slideformer.data.chat import IGNORED
from slideformer.data.examples import Example
from slideformer.engine.canary import refuse_leaks
from slideformer.engine.engine import Engine
from slideformer.errors import UnsupportedModel
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import PADDED
from slideformer.models.tiny import shrink
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes

STEPS, SEQUENCES, LENGTH = 2, 4, 24
DOCUMENTS = ((24,), (5, 9, 10), (13, 8), (3, 17, 4))  # of packed rows, of SEQUENCES x LENGTH
# A large epsilon: gradients that are only rounding noise must not decide.
HYPER = AdamWStep(learning_rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-3, weight_decay=0.1, step=1)
TOLERANCE = 2e-5  # of losses (relative) and weights (absolute, after moving by up to 2e-2)


@dataclass(frozen=True)
class Parity:
    """How far the two trainings are apart.

    Attributes:
        rows: what the engine trained on, "padded" or "packed"; plain PyTorch always pads.
        loss_error: largest relative difference of a loss.
        weight_error: largest absolute difference of a weight after the last step.
        worst: name of that weight.
    """

    architecture: str
    rows: str
    parameters: int
    loss_error: float
    weight_error: float
    worst: str

    @property
    def exact(self) -> bool:
        return self.loss_error <= TOLERANCE and self.weight_error <= TOLERANCE

    @property
    def _how(self) -> str:
        return "packed " if self.rows == "packed" else ""

    def __str__(self) -> str:
        return (
            f"parity: a {self.parameters / 1e6:.2f}M-parameter {self.architecture} trains {self._how}"
            f"as in plain PyTorch (loss within {self.loss_error:.0e}, weights within {self.weight_error:.0e})"
        )


def check_parity(config: Any, trust_remote_code: bool = False, packed: bool = False) -> Parity:
    """Train a tiny copy both ways for two steps in fp32 on the CPU.

    Args:
        packed: the engine trains on packed rows; plain PyTorch on the same documents, one a row.

    Raises:
        UnsupportedModel: the results differ, so the model would be trained wrongly; or documents see each other.
    """
    tiny = _without_dropout(shrink(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny, dtype=torch.float32, trust_remote_code=trust_remote_code).train()
    decoder = Decoder(tiny, torch.device("cpu"), trust_remote_code=trust_remote_code, packed=packed)
    if packed:
        refuse_leaks(decoder, dict(model.named_parameters()))
    batches = [_packed_and_padded(tiny, step) if packed else (_batch(tiny, step),) * 2 for step in range(STEPS)]
    losses, weights = _engine_training(decoder, model, [ours for ours, _ in batches])
    plain_losses = _plain_training(model, decoder.undecayed, [plain for _, plain in batches])
    parity = _compared(model, losses, weights, plain_losses, "packed" if packed else "padded")
    if not parity.exact:
        raise UnsupportedModel(
            f"a tiny {parity.architecture} does not train {parity._how}here as in plain PyTorch: losses differ by "
            f"{parity.loss_error:.1e}, {parity.worst} by {parity.weight_error:.1e}",
            PADDED if packed else "the engine would train this model wrongly; please report its config.json",
        )
    return parity


def _compared(
    model: nn.Module, losses: list[float], weights: dict[str, torch.Tensor], plain_losses: list[float], rows: str
) -> Parity:
    plain = dict(model.named_parameters())
    errors = {name: float((value - plain[name]).detach().abs().max()) for name, value in weights.items()}
    worst = max(errors, key=lambda name: errors[name])
    loss_error = max(abs(a - b) / abs(b) for a, b in zip(losses, plain_losses, strict=True))
    parameters = sum(p.numel() for p in plain.values())
    return Parity(type(model).__name__, rows, parameters, loss_error, errors[worst], worst)


def _engine_training(
    decoder: Decoder, model: nn.Module, batches: list[Batch]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    start = dict(model.named_parameters())
    sizes = Sizes(2, SEQUENCES // 2, 2, LENGTH, 2, min(1, decoder.depth), head_chunk=13)
    with Engine(decoder, sizes, torch.float32, threads=1) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        losses = [engine.train_step(batch, _hyper(k)).loss for k, batch in enumerate(batches)]
        weights = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
    return losses, weights


def _plain_training(model: nn.Module, undecayed: set[str], batches: list[Batch]) -> list[float]:
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in parameters.items() if (n in undecayed) == free], "weight_decay": decay}
        for free, decay in ((False, HYPER.weight_decay), (True, 0.0))
    ]
    betas = (HYPER.beta1, HYPER.beta2)
    optimizer = torch.optim.AdamW(groups, lr=HYPER.learning_rate, betas=betas, eps=HYPER.epsilon)
    losses = []
    for batch in batches:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1).float()
        loss = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _batch(config: Any, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, config.get_text_config().vocab_size, (SEQUENCES, LENGTH), generator=generator)
    targets = torch.full_like(ids, IGNORED)
    targets[:, 2:-1] = ids[:, 3:]
    return Batch(ids, targets, (LENGTH,) * SEQUENCES, tuple(range(SEQUENCES)))


def _packed_and_padded(config: Any, step: int) -> tuple[Batch, Batch]:
    """The same documents, several a row and one a row."""
    generator = torch.Generator().manual_seed(step)
    vocabulary = config.get_text_config().vocab_size

    def example(length: int) -> Example:
        ids = torch.randint(1, vocabulary, (length,), generator=generator, dtype=torch.int32)
        return Example(0, ids, torch.cat([torch.full((2,), IGNORED, dtype=torch.int32), ids[2:]]))

    rows = [[example(length) for length in row] for row in DOCUMENTS]
    return collate_packed(rows, pad_id=0), collate([example for row in rows for example in row], pad_id=0)


def _hyper(index: int) -> AdamWStep:
    return AdamWStep(HYPER.learning_rate, HYPER.beta1, HYPER.beta2, HYPER.epsilon, HYPER.weight_decay, index + 1)


def _without_dropout(config: Any) -> Any:
    """Dropout is drawn at random in both; it is left out of the comparison."""
    config = deepcopy(config)
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config
