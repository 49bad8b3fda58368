"""Run directories with made-up numbers: the shape of a run, without the hours."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from made_up_plans import plan

from slideformer.data.examples import DataReport
from slideformer.optim.lr import learning_rate_at
from slideformer.plan.plan import Plan
from slideformer.settings.config import Config

MODEL = "A made-up model"
PROMPTS = {
    "Say in one sentence what a sliding window is.": (
        "A sliding window is a window that slides. A sliding window is a window that slides. A sliding window is",
        "A sliding window is a fixed-size view that moves along a sequence and looks at one stretch of it at a time.",
        "It is a view of fixed size that moves along something longer, so that only the part inside has to be at hand.",
    ),
    "Write a Python function that counts the vowels in a text.": (
        "The function is a function that returns the number of the text in the text.",
        "def count_vowels(text):\n    return len([c for c in text if c in 'aeiou'])",
        "def count_vowels(text: str) -> int:\n    return sum(letter in 'aeiou' for letter in text.lower())",
    ),
}


def write_run(directory: Path, steps: int = 400, done: int | None = None, evaluate_every: int = 50) -> Path:
    """A whole run directory: metrics, evaluations, samples and run.json.

    Args:
        steps: of the run.
        done: of these; None: all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    done = steps if done is None else done
    config = made_up_config(directory, steps)
    write_lines(directory / "metrics.jsonl", made_up_steps(config, steps, done))
    write_lines(directory / "evals.jsonl", made_up_evaluations(steps, done, evaluate_every))
    write_lines(directory / "samples.jsonl", made_up_samples(done))
    (directory / "run.json").write_text(json.dumps(made_up_record(config, steps)))
    return directory


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def made_up_config(directory: Path, steps: int) -> Config:
    return Config.model_validate(
        {
            "model": MODEL, "output_dir": directory.name, "max_steps": steps, "batch_size": 32, "learning_rate": 2e-5,
            "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "budget": {"gpu": "8GiB", "host": "4GiB"},
            "data": {"sources": [{"path": "chat.jsonl"}, {"path": "textbooks.jsonl", "weight": 0.25}]},
        }
    )  # fmt: skip


def made_up_plan() -> Plan:
    return plan(gpu="8GiB", host="4GiB")


def made_up_steps(config: Config, steps: int, done: int, seed: int = 1) -> Iterable[dict[str, Any]]:
    """A loss that falls and flickers, a few large gradients, a slow first step; and where the time went."""
    draw = random.Random(seed)
    made = made_up_plan()
    for step in range(1, done + 1):
        seconds = draw.gauss(2.05, 0.05) + 3.0 * (step == 1) + 0.6 * (draw.random() < 0.02)
        tokens = draw.randint(24_000, 31_000)
        rate = learning_rate_at(
            step - 1, schedule=config.lr_scheduler_type, learning_rate=config.learning_rate,
            warmup_steps=steps // 20, total_steps=steps,
        )  # fmt: skip
        yield {
            "step": step, "loss": loss_at(step, steps) + draw.gauss(0, 0.06),
            "grad_norm": math.exp(draw.gauss(0, 0.18)) * (0.7 + 5 * math.exp(-step / 12)), "learning_rate": rate,
            "tokens": tokens, "trained_tokens": int(0.62 * tokens), "seconds": seconds,
            "tokens_per_second": tokens / seconds, "gpu_peak_bytes": int(0.985 * made.device_peak_bytes),
            "host_peak_bytes": int(1.011 * made.host_peak_bytes), "gpu_busy_seconds": 0.93 * seconds,
            "optimizer_seconds": 0.51 * seconds, "waiting_seconds": 0.06 * seconds,
        }  # fmt: skip


def loss_at(step: int, steps: int) -> float:
    return 1.12 + 0.75 * math.exp(-6 * step / steps) + 0.25 * math.exp(-60 * step / steps)


def made_up_evaluations(steps: int, done: int, every: int) -> Iterable[dict[str, Any]]:
    for step in range(0, done + 1, every):
        loss = loss_at(step, steps) + 0.06
        yield {"step": step, "loss": loss, "perplexity": math.exp(loss), "tokens": 51_200, "seconds": 3.1}


def made_up_samples(done: int) -> Iterable[dict[str, Any]]:
    for number, step in enumerate(sorted({0, done // 2, done})):
        for prompt, texts in PROMPTS.items():
            yield {"step": step, "prompt": prompt, "answer": texts[number]}


def made_up_record(config: Config, steps: int) -> dict[str, Any]:
    lengths = [12, 41, 96, 170, 226, 248, 231, 190, 143, 104, 76, 55, 41, 30, 24, 88]
    chat = DataReport(1450, 1438, truncated=88, dropped_untrained=12, tokens=689_551, trained_tokens=421_882)
    books = DataReport(341, 337, dropped_long=4, tokens=160_020, trained_tokens=160_020)
    return {
        "format": 1, "started": "2026-11-24T09:30:00+00:00", "config": config.model_dump(mode="json"),
        "versions": {"python": "3.12.0", "slideformer": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"name": "A machine that does not exist", "host_bytes": 64 * 2**30, "device_bytes": 24 * 2**30},
        "plan": made_up_plan().as_json(),
        "data": {
            "sources": ["chat.jsonl", "textbooks.jsonl"], "reports": [asdict(chat), asdict(books)],
            "lengths": {"edges": list(range(0, 1025, 64)), "counts": lengths},
        },
        "model": {"architecture": "MadeUpForCausalLM", "parameters": 183_796_736, "trained_parameters": 183_796_736},
        "steps": steps,
    }  # fmt: skip
