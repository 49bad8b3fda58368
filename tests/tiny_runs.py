"""Tiny training runs: by the program, by the engine, and by the plain PyTorch loop that both are compared with."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_models import VOCAB
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, get_scheduler

from slideformer.cli import main
from slideformer.data.batches import Batch, collate
from slideformer.data.examples import Example
from slideformer.engine.engine import Engine
from slideformer.lanes.lanes import Lanes
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes

Record = dict[str, list[int]]


def make_records(count: int, seed: int = 1, lengths: tuple[int, int] = (6, 24)) -> list[Record]:
    """Random tokenized records of different lengths; the first tokens of each are a prompt, which is not trained."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for _ in range(count):
        length = int(torch.randint(lengths[0], lengths[1] + 1, (1,), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        records.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return records


def write_records(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_config(path: Path, model: Path, data: Path, output_dir: Path, shuffle: bool = False, **settings: Any) -> Path:
    """A configuration file (JSON is YAML), without the parity check unless asked for."""
    records = {"path": str(data), "shuffle": shuffle, "cache_dir": None}
    required = {"model": str(model), "output_dir": str(output_dir), "data": records}
    path.write_text(json.dumps({**required, "parity_check": False, "device": "cpu", **settings}))
    return path


@dataclass(frozen=True)
class Run:
    """What a training came to: per step the loss and the gradient's norm before clipping, and the last weights."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def read_run(output_dir: Path) -> Run:
    """The metrics and the exported weights of a run, tied copies left out as transformers leaves them out."""
    steps = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    weights = {name: value for file in output_dir.glob("*.safetensors") for name, value in load_file(file).items()}
    return Run([step["loss"] for step in steps], [step["grad_norm"] for step in steps], weights)


def train(config: Path, output_dir: Path) -> Run:
    """Run `slideformer train` in this process."""
    assert main(["train", str(config)]) == 0
    return read_run(output_dir)


def plain_training(model_path: Path, records: Sequence[Record], settings: dict[str, Any]) -> Run:
    """The same training as anyone would write it, with PyTorch's optimizer and transformers' groups and schedule."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings["weight_decay"]),
        lr=settings["learning_rate"],
        betas=(settings["adam_beta1"], settings["adam_beta2"]),
        eps=settings["adam_epsilon"],
    )
    schedule = get_scheduler(
        settings["lr_scheduler_type"], optimizer, settings["warmup_steps"], settings["max_steps"]
    )  # fmt: skip
    losses, norms = [], []
    for step in range(settings["max_steps"]):
        loss = mean_loss(model, batch_at(records, settings["batch_size"], step))
        loss.backward()
        limit = settings["max_grad_norm"] or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return Run(losses, norms, {name: value.detach() for name, value in model.named_parameters()})


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]  # uses no trainer
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


def mean_loss(model: Any, batch: Batch) -> Tensor:
    """The mean over all trained tokens of a batch."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=-100)


def batch_at(records: Sequence[Record], batch_size: int, step: int) -> Batch:
    """The step's batch of records in order, epoch after epoch; an epoch's last batch may be smaller."""
    per_epoch = -(-len(records) // batch_size)
    start = step % per_epoch * batch_size
    indices = range(start, min(start + batch_size, len(records)))
    return collate([Example(i, *as_int32(records[i])) for i in indices], pad_id=0)


def as_int32(record: Record) -> tuple[Tensor, Tensor]:
    return torch.tensor(record["input_ids"], dtype=torch.int32), torch.tensor(record["labels"], dtype=torch.int32)


# ---- the engine alone

# epsilon: at 1e-4 plain fp32 is up to 1.2e-5 from plain fp64 after three steps, more than the tolerance it is held to.
HYPER = AdamWStep(learning_rate=1e-2, beta1=0.9, beta2=0.99, epsilon=1e-3, weight_decay=0.1, step=1)
SIZES = Sizes(
    window_depth=2,
    micro_batch_size=2,
    micro_batches=2,
    max_length=24,
    gradient_slots=2,
    host_boundaries=0,
    head_chunk=13,
)

States = dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A tiny model taken apart, with the weights it starts from."""

    model: Any
    decoder: Decoder


def subject(model: Any, device: str = "cpu") -> Subject:
    return Subject(model, Decoder(model.config, torch.device(device)))


@contextmanager
def tiny_engine(
    of: Subject,
    sizes: Sizes = SIZES,
    dtype: torch.dtype = torch.float32,
    lanes: Lanes | None = None,
    offload_dir: Path | None = None,
) -> Iterator[Engine]:
    """An engine with the model's weights loaded."""
    start = dict(of.model.named_parameters())
    with Engine(of.decoder, sizes, dtype, lanes, threads=1, offload_dir=offload_dir) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        yield engine


def hyper_at(step: int) -> AdamWStep:
    return replace(HYPER, step=step)


def states_of(engine: Engine) -> States:
    """Copies of every plane and moment, after the last update."""
    engine.drain()
    copies = {}
    for unit, state in engine.states.items():
        with state.opened(change=False) as whole:
            copies[unit] = tuple(tensor.clone() for tensor in whole.tensors().values())
    return copies


def differences(one: States, other: States) -> list[str]:
    """Units of which any bit of any plane or moment differs."""
    assert one.keys() == other.keys()
    return [unit for unit in one if not all(map(same_bits, one[unit], other[unit]))]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def answer_of(saved: Path, prompt: str) -> str:
    """The greedy answer as anyone would get it."""
    model: Any = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
