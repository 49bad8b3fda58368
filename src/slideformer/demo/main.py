"""`slideformer demo`: a real model, real data, no hub: the answer to one prompt before and after fine-tuning."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import yaml
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from slideformer.demo.assets import make_model
from slideformer.demo.pairs import request_for, write_pairs
from slideformer.listeners.metrics import StepStats
from slideformer.listeners.run_directory import read_metrics
from slideformer.run.trainer import Trainer
from slideformer.settings.config import load_config

NEW_TOKENS = 120
# The standard library has no such function, so the prompt is unseen whatever the Python version.
PROMPT = request_for("count_vowels(text)", "Return the number of vowels in text.")
BARS = "▁▂▃▄▅▆▇█"


def run(
    device: Literal["auto", "cuda", "cpu"] = "auto", directory: Path = Path("demo"), max_steps: int = 50
) -> list[StepStats]:
    """Fine-tune SmolLM2-135M-Instruct on docstring -> function pairs of Python's standard library.

    Everything is written under `directory`: model, data, the config (to copy from), the trained model.

    Returns:
        what each step measured.
    """
    console, started = Console(), time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    console.print("[bold]1. Model and data[/bold]  SmolLM2-135M-Instruct; functions of Python's standard library")
    model = make_model(directory / "model")
    console.print(f"   {write_pairs(directory / 'pairs.jsonl'):,} pairs of docstring and function")
    config = _write_config(directory, device, max_steps)

    console.print("\n[bold]2. Before[/bold]")
    console.print(Panel(Text(PROMPT), title="prompt"))  # Text: brackets in code are not markup
    console.print(Panel(Text(answer(model, PROMPT)), title="answer before"))

    console.print(f"\n[bold]3. Training[/bold]  slideformer train {config}")
    settings = load_config(config)
    checkpoint = Trainer(settings).train()
    steps = read_metrics(settings.output_dir / "metrics.jsonl")
    if checkpoint is not None:
        console.print(f"stopped; the same command goes on from {checkpoint}")
        return steps

    console.print("\n[bold]4. After[/bold]")
    console.print(Panel(Text(answer(settings.output_dir, PROMPT)), title="answer after"))
    losses = [stats.loss for stats in steps]
    console.print(
        f"loss {sparkline(losses)}  {_mean(losses[:10]):.3f} (first 10) -> {_mean(losses[-10:]):.3f} (last 10)"
    )
    console.print(f"{time.perf_counter() - started:.0f} s in all; the model is in {settings.output_dir}")
    return steps


def answer(model_directory: Path, request: str) -> str:
    """The model's greedy answer; in bf16, which a CPU reads faster."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.bfloat16).eval()
    prompt = [{"role": "user", "content": request}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output: torch.Tensor = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)  # pyright: ignore
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def sparkline(values: list[float]) -> str:
    """Values as a line of bars, averaged into at most 40."""
    width = min(40, len(values))
    edges = [k * len(values) // width for k in range(width + 1)]
    means = [_mean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / ((high - low) or 1.0)
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _write_config(directory: Path, device: str, max_steps: int) -> Path:
    """The config of the run, as a file that can be copied and changed."""
    settings = {
        "model": str(directory / "model"),
        "output_dir": str(directory / "trained"),
        "device": device,
        "max_length": 192,
        "too_long": "drop",
        "batch_size": 4,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "max_steps": max_steps,
        "logging_steps": 5,
        "resume_from_checkpoint": "auto",
        "data": {"path": str(directory / "pairs.jsonl"), "shuffle": True},
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path
