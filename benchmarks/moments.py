"""What 16-bit moments do to the loss: the same runs with fp32, with bf16, and with bf16 rounded to nearest.

    python benchmarks/moments.py [--steps 800] [--seeds 3] [--beta2 0.999] [--forms FORM ...] [--json FILE]

A Llama of 270 thousand parameters is trained from random weights on the bytes of Python's standard library, by the
engine, in fp32 on the CPU, with warm-up and a linear decay to zero. A seed decides weights, batches and rounding. The
engine does not offer rounding to nearest: here the fp32 moments of its run are rounded after each step. The nudged fp32
run begins with weights a millionth larger: what it ends with shows how far two runs drift apart that are equally exact.
Figures are the mean loss of the last 20 steps, and the mean of `exp_avg_sq` at the end relative to that of the fp32 run
of the same seed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig

from slideformer import _core
from slideformer.data.batches import Batch, collate
from slideformer.data.examples import Example
from slideformer.engine.engine import Engine
from slideformer.engine.random_weights import random_weights
from slideformer.memory.host import LayerState
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes

BYTES = 256
SEQUENCES, LENGTH, LAST = 4, 64, 20
WARM_UP_STEPS, LEARNING_RATE = 20, 2e-3
MODEL = LlamaConfig(
    vocab_size=BYTES, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=False,
)  # fmt: skip
SIZES = Sizes(
    window_depth=2, micro_batch_size=SEQUENCES, micro_batches=1, max_length=LENGTH, gradient_slots=2,
    host_boundaries=0, head_chunk=SEQUENCES * LENGTH,
)  # fmt: skip
FORMS = ("fp32", "fp32 nudged", "bf16 stochastic", "bf16 to nearest")
NUDGE = 2.0**-20


def standard_library() -> Tensor:
    """The bytes of the modules of Python's standard library, one behind the other: [n] int32."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).int()


def batch_of(text: Tensor, generator: torch.Generator) -> Batch:
    """Pieces of the text that begin anywhere; every byte is trained."""
    starts = torch.randint(len(text) - LENGTH, (SEQUENCES,), generator=generator).tolist()
    pieces = [text[start : start + LENGTH] for start in starts]
    return collate([Example(i, piece, piece) for i, piece in enumerate(pieces)], pad_id=0)


@dataclass(frozen=True)
class Run:
    """The loss of each step, and the mean of all second moments behind the last."""

    losses: list[float]
    mean_square: float

    @property
    def final(self) -> float:
        return statistics.fmean(self.losses[-LAST:])


def train(form: str, seed: int, steps: int, beta2: float, text: Tensor) -> Run:
    """One run, from random weights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = replace(SIZES, optimizer_state="bf16" if form == "bf16 stochastic" else "fp32")
    with Engine(Decoder(MODEL, torch.device("cpu")), sizes, torch.float32, threads=1, seed=seed) as engine:
        scale = 1 + NUDGE if form == "fp32 nudged" else 1.0
        for unit, values in random_weights(engine, MODEL, seed):
            engine.load([(unit, {name: value.float() * scale for name, value in values.items()})])
        results = []
        for step in range(1, steps + 1):
            rate = LEARNING_RATE * min(step / WARM_UP_STEPS, (steps - step + 1) / (steps - WARM_UP_STEPS))
            hyper = AdamWStep(rate, 0.9, beta2, 1e-8, 0.0, step)
            results.append(engine.train_step(batch_of(text, generator), hyper, max_norm=1.0).loss)
            if form == "bf16 to nearest":
                round_to_nearest(engine)
        engine.drain()
        states = [state.tensors() for state in engine.states.values() if isinstance(state, LayerState)]
        squares = [tensors["exp_avg_sq"].double().sum().item() for tensors in states]
        return Run(results, sum(squares) / sum(state.layout.parameter_count for state in engine.states.values()))


def round_to_nearest(engine: Engine) -> None:
    engine.drain()
    for state in engine.states.values():
        assert isinstance(state, LayerState)
        for moment in (state.exp_avg, state.exp_avg_sq):
            moment.copy_(moment.bfloat16())


def summarize(runs: dict[str, list[Run]]) -> Iterable[str]:
    """A line for each form: its losses, and how far from the fp32 run of the same seed."""
    exact = [run.final for run in runs["fp32"]]
    yield f"fp32 over seeds: mean {statistics.fmean(exact):.4f}, standard deviation {statistics.stdev(exact):.4f}"
    for form in runs:
        pairs = list(zip(runs[form], runs["fp32"], strict=True))
        apart = [ours.final - theirs.final for ours, theirs in pairs]
        squares = ", ".join(f"{ours.mean_square / theirs.mean_square:.3f}" for ours, theirs in pairs)
        each = ", ".join(f"{run.final:.4f}" for run in runs[form])
        yield f"{form:16s} {each}   minus fp32: mean {statistics.fmean(apart):+.4f}, largest {max(apart, key=abs):+.4f}"
        yield f"{'':16s} second moments, relative to fp32: {squares}"


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()

    text = standard_library()
    print(f"{len(text):,} bytes of text, {args.steps} steps, beta2 {args.beta2}, {_core.selected_isa()}")
    runs: dict[str, list[Run]] = {form: [] for form in args.forms}
    for seed in range(args.seeds):
        for form in args.forms:
            runs[form].append(train(form, seed, args.steps, args.beta2, text))
            print(f"seed {seed}, {form}: {runs[form][-1].final:.4f}, {runs[form][-1].mean_square:.4g}", flush=True)
    if "fp32" in runs:
        print(*summarize(runs), sep="\n")
    if args.json:
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        about = {"commit": commit(), "isa": _core.selected_isa(), "versions": versions, "text_bytes": len(text)}
        settings = {"steps": args.steps, "beta2": args.beta2, "seeds": args.seeds}
        results = {
            form: [
                {"final_loss": run.final, "mean_square": run.mean_square, "losses": run.losses} for run in runs[form]
            ]
            for form in args.forms
        }
        args.json.write_text(json.dumps(about | settings | {"runs": results}))


if __name__ == "__main__":
    main()
