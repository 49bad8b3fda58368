"""Before the first step: a tiny copy of the architecture is trained here and by plain PyTorch, and compared."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slideformer.data.batches import Batch, collate, collate_packed
from slideformer.data.chat import IGNORED
from slideformer.data.examples import Example
from slideformer.engine.canary import refuse_leaks
from slideformer.engine.engine import Engine
from slideformer.engine.plain_training import Training, plain_training
from slideformer.errors import SlideFormerError, UnsupportedModel
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import PADDED
from slideformer.models.tiny import shrink
from slideformer.models.tiny_model import build_tiny, refuse_two_way, without_dropout
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes

STEPS, SEQUENCES, MICRO_BATCHES, LENGTH = 2, 4, 2, 24
SIZES = Sizes(2, SEQUENCES // MICRO_BATCHES, MICRO_BATCHES, LENGTH, 2, host_boundaries=1, head_chunk=13)
DOCUMENTS = ((24,), (5, 9, 10), (13, 8), (3, 17, 4))  # of packed rows, of SEQUENCES x LENGTH
# A large epsilon: gradients that are only rounding noise must not decide.
HYPER = AdamWStep(learning_rate=2e-3, beta1=0.9, beta2=0.999, epsilon=1e-3, weight_decay=0.1, step=1)
TOLERANCE = 1e-5  # of losses (relative) and weights (absolute, after moving by up to 2e-3 a step)
GRADIENT_TOLERANCE = 1e-4  # of the first step's gradients, relative to the largest of the same parameter
SMALL_GRADIENT = 1e-3  # of the model's largest: what is smaller is compared with this


@dataclass(frozen=True)
class Parity:
    """How far the two trainings are apart.

    Attributes:
        rows: what the engine trained on, "padded" or "packed"; plain PyTorch always pads.
        loss_error: largest relative difference of a loss.
        gradient_error: largest difference of a gradient in the first step, relative to the largest of its parameter.
        weight_error: largest absolute difference of a weight after the last step.
        worst: name of the parameter that differs most.
        rounding: how far plain fp32 training is from plain fp64 training, in weights. Known only where it was needed:
            in some models a first step's rounding errors grow within three steps beyond any fixed tolerance.
    """

    architecture: str
    rows: str
    parameters: int
    loss_error: float
    gradient_error: float
    weight_error: float
    worst: str
    rounding: float = 0.0

    @property
    def exact(self) -> bool:
        first_step = self.loss_error <= TOLERANCE and self.gradient_error <= GRADIENT_TOLERANCE
        return first_step and self.weight_error <= max(TOLERANCE, self.rounding)

    @property
    def _how(self) -> str:
        return "packed " if self.rows == "packed" else ""

    def __str__(self) -> str:
        return (
            f"parity: a {self.parameters / 1e6:.2f}M-parameter {self.architecture} trains {self._how}"
            f"as in plain PyTorch (loss within {self.loss_error:.0e}, "
            f"gradients {self.gradient_error:.0e}, weights {self.weight_error:.0e})"
        )


def check_parity(config: Any, trust_remote_code: bool = False, packed: bool = False, steps: int = STEPS) -> Parity:
    """Train a tiny copy both ways for a few steps in fp32 on the CPU.

    Args:
        packed: the engine trains on packed rows; plain PyTorch on the same documents, one a row.

    Raises:
        UnsupportedModel: the results differ, so the model would be trained wrongly, there is no tiny copy, or packed
            documents see each other.
    """
    tiny = shrink(config)
    with torch.random.fork_rng(devices=[]):
        if packed:
            tiny = without_dropout(tiny)  # which packed and padded rows cannot draw alike
        model = build_tiny(tiny, trust_remote_code)
        refuse_two_way(model, tiny.get_text_config().vocab_size)
        decoder = Decoder(tiny, torch.device("cpu"), trust_remote_code=trust_remote_code, packed=packed)
        parity = compare(model, decoder, steps)
    if not parity.exact:
        raise UnsupportedModel(
            f"a tiny {parity.architecture} does not train {parity._how}here as in plain PyTorch: losses differ by "
            f"{parity.loss_error:.1e}, gradients by {parity.gradient_error:.1e}, weights by {parity.weight_error:.1e} "
            f"({parity.worst})",
            PADDED if packed else "the engine would train this model wrongly; please report its config.json",
        )
    return parity


def compare(model: Any, decoder: Decoder, steps: int = STEPS) -> Parity:
    """Train `model` by plain PyTorch, in place, and a copy of it through the engine.

    Raises:
        UnsupportedModel: its blocks cannot be run one by one.
    """
    vocabulary = model.config.get_text_config().vocab_size
    pairs = [
        _packed_and_padded(vocabulary, k) if decoder.packed else (_batch(vocabulary, k),) * 2 for k in range(steps)
    ]
    batches = [plain for _, plain in pairs]
    with torch.random.fork_rng(devices=[]):
        if decoder.packed:
            refuse_leaks(decoder, dict(model.named_parameters()))
        try:
            ours = _engine_training(decoder, model, [batch for batch, _ in pairs])
        except SlideFormerError:
            raise
        except Exception as error:  # the model's own code, called block by block, raises what it likes
            reason = f"{type(error).__name__}: {error}"
            raise UnsupportedModel(f"the blocks of {type(model).__name__} do not run one by one: {reason}") from error
        start = deepcopy(model)
        plain = plain_training(decoder, model, batches, HYPER, SIZES)
        weight_error = ours.furthest_from(plain)
        rounding = 0.0
        if weight_error > TOLERANCE:  # fp64, but for what the model's own code casts to fp32
            rounding = plain.furthest_from(plain_training(decoder, start.double(), batches, HYPER, SIZES))
    loss_error = max(abs(a - b) / abs(b) for a, b in zip(ours.losses, plain.losses, strict=True))
    small = SMALL_GRADIENT * max(float(g.abs().max()) for g in plain.gradients.values())
    gradient_errors = {
        name: float((ours.gradients[name] - g).abs().max()) / max(small, float(g.abs().max()))
        for name, g in plain.gradients.items()
    }
    weight_errors = {name: float((ours.weights[name] - w).abs().max()) for name, w in plain.weights.items()}

    def badness(name: str) -> float:
        return max(gradient_errors.get(name, 0) / GRADIENT_TOLERANCE, weight_errors[name] / TOLERANCE)

    return Parity(
        type(model).__name__,
        "packed" if decoder.packed else "padded",
        sum(w.numel() for w in plain.weights.values()),
        loss_error,
        max(gradient_errors.values()),
        weight_error,
        max(weight_errors, key=badness),
        rounding,
    )


def _engine_training(decoder: Decoder, model: nn.Module, batches: list[Batch]) -> Training:
    start = dict(model.named_parameters())
    sizes = replace(SIZES, host_boundaries=min(SIZES.host_boundaries, decoder.depth))
    with Engine(decoder, sizes, torch.float32, threads=1) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        losses, gradients = [], {}
        for k, batch in enumerate(batches):
            losses.append(engine.train_step(batch, replace(HYPER, step=k + 1)).loss)
            gradients = gradients or _first_gradients(engine)
        weights = {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}
    return Training(losses, gradients, weights)


def _first_gradients(engine: Engine) -> dict[str, Tensor]:
    """The gradients of the first step, which are all that its first moments hold."""
    engine.drain()
    gradients = {}
    for unit, names in engine.parameter_groups().items():
        with engine.states[unit].opened(change=False) as state:
            for name, field in zip(names, state.layout.fields.values(), strict=True):
                if field.trained:
                    moment = state.exp_avg[field.start : field.stop]
                    gradients[name] = (moment / (1 - HYPER.beta1)).view(field.shape)
    return gradients


def _batch(vocabulary: int, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, vocabulary, (SEQUENCES, LENGTH), generator=generator)
    targets = torch.full_like(ids, IGNORED)
    targets[:, 2:-1] = ids[:, 3:]
    return Batch(ids, targets, (LENGTH,) * SEQUENCES, tuple(range(SEQUENCES)))


def _packed_and_padded(vocabulary: int, step: int) -> tuple[Batch, Batch]:
    """The same documents, several a row and one a row."""
    generator = torch.Generator().manual_seed(step)

    def example(length: int) -> Example:
        ids = torch.randint(1, vocabulary, (length,), generator=generator, dtype=torch.int32)
        return Example(0, ids, torch.cat([torch.full((2,), IGNORED, dtype=torch.int32), ids[2:]]))

    rows = [[example(length) for length in row] for row in DOCUMENTS]
    return collate_packed(rows, pad_id=0), collate([example for row in rows for example in row], pad_id=0)
