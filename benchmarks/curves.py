"""The loss curve of one config, trained four ways on the same records: where the layers compute, in which type, and by
which program.

    python benchmarks/curves.py demo/config.yaml --json out.json

`engine` is `slideformer train`; `plain` is a model that stays on the device, stepped by torch.optim.AdamW over an fp32
master. bf16 weights round the master, so that small updates are invisible until they add up: a bf16 curve is compared
with a bf16 curve.
"""

import argparse
import json
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from slideformer.data.chat import IGNORED
from slideformer.listeners.run_directory import read_metrics
from slideformer.prepare.job import Job, hyper_at, prepare
from slideformer.run.trainer import Trainer
from slideformer.settings.config import Config, load_config

WAYS = ("plain cuda bf16", "engine cuda bf16", "plain cuda fp32", "engine cuda fp32", "engine cpu fp32")


def losses_of(way: str, config_path: Path, overrides: list[str]) -> list[float]:
    """The loss of every step."""
    program, device, dtype = way.split()
    with tempfile.TemporaryDirectory() as out:
        words = [*overrides, "--device", device, "--compute_dtype", dtype, "--output_dir", out]
        config = load_config(config_path, words)
        if program == "plain":
            return plain_losses(config)
        Trainer(config).train()
        return [stats.loss for stats in read_metrics(Path(out) / "metrics.jsonl")]


def plain_losses(config: Config) -> list[float]:
    """Train the records of `config` with plain PyTorch; weights in the compute type, master and moments in fp32."""
    job = prepare(config)
    model: Any = AutoModelForCausalLM.from_pretrained(job.model_path, dtype=job.dtype)
    model = model.to(job.decoder.device).train()
    weights = dict(model.named_parameters())
    masters = {name: nn.Parameter(w.detach().float()) for name, w in weights.items()}
    optimizer = torch.optim.AdamW(_decay_groups(masters, job, config))
    stream = job.batches()
    losses = []
    for step in range(1, job.steps + 1):
        hyper, batch = hyper_at(config, job.steps, step), stream.at(step - 1)
        for group in optimizer.param_groups:
            group.update(lr=hyper.learning_rate, betas=(hyper.beta1, hyper.beta2), eps=hyper.epsilon)
        ids, targets = batch.input_ids.to(job.decoder.device), batch.targets.to(job.decoder.device)
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        for name, w in weights.items():
            assert w.grad is not None
            masters[name].grad, w.grad = w.grad.float(), None
        if config.max_grad_norm:
            nn.utils.clip_grad_norm_(masters.values(), config.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(masters[name])
        losses.append(float(loss.detach()))
    return losses


def _decay_groups(masters: dict[str, nn.Parameter], job: Job, config: Config) -> list[dict[str, object]]:
    undecayed = job.decoder.undecayed
    return [
        {"params": [p for name, p in masters.items() if (name in undecayed) == free], "weight_decay": decay}
        for free, decay in ((False, config.weight_decay), (True, 0.0))
    ]


def compare(a: list[float], b: list[float]) -> dict[str, float]:
    """Relative difference of two curves: the largest of a step, and that of their means over the last ten."""
    steps = [abs(x - y) / y for x, y in zip(a, b, strict=True)]
    return {"largest": max(steps), "last ten": abs(sum(a[-10:]) - sum(b[-10:])) / sum(b[-10:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--json", type=Path)
    arguments, overrides = parser.parse_known_args()
    curves = {way: losses_of(way, arguments.config, overrides) for way in arguments.ways}
    for way, losses in curves.items():
        print(f"{way:<18}", *(f"{loss:.4f}" for loss in losses[:: max(1, len(losses) // 10)]))
    differences = {f"{a} | {b}": compare(curves[a], curves[b]) for a, b in combinations(curves, 2)}
    for pair, d in differences.items():
        print(f"{pair:<40} largest of a step {d['largest']:.2%}, last ten steps {d['last ten']:.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"losses": curves, "differences": differences}, indent=1) + "\n")


if __name__ == "__main__":
    main()
