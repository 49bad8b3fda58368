"""The device runs out of memory in the middle of a run: what is said, what is let go of, and that one may try again."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model
from tiny_runs import make_records, write_config, write_records

from slideformer.engine import compute
from slideformer.engine.engine import Engine
from slideformer.errors import DoesNotFit
from slideformer.memory.host import LayerState
from slideformer.memory.window import LayerWindow
from slideformer.prepare.job import plan_for
from slideformer.run import out_of_memory
from slideformer.run.trainer import Trainer
from slideformer.settings.config import Budget, load_config
from slideformer.units import MIB, parse_bytes

MESSAGE = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.6 GiB"
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "while it is built": (LayerWindow, "__init__", 0),
    "while weights are loaded": (LayerState, "load", 3),
    "in the first step's forward": (compute, "block_recorded", 2),
    "in a later step's backward": (compute, "block_backward", 9),
    "in an evaluation": (compute, "add_head_loss", 1),
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = save_tiny_model(tmp_path / "model", "qwen3")
    data = write_records(tmp_path / "data.jsonl", make_records(24))
    settings: dict[str, Any] = {"batch_size": 8, "max_length": 24, "max_steps": 4, "eval_size": 4, "eval_steps": 2}
    return write_config(tmp_path / "run.yaml", model, data, tmp_path / "out", **settings)


def failing_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise torch.OutOfMemoryError(f"{MESSAGE}\nmore about it")
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_is_told_with_the_plan_and_what_would_fit_and_the_next_try_works(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    owner, name, number = MOMENTS[moment]
    engines: list[weakref.ref[Engine]] = []
    enter = Engine.__enter__
    monkeypatch.setattr(Engine, "__enter__", lambda engine: (engines.append(weakref.ref(engine)), enter(engine))[1])
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing_at(number, getattr(owner, name)))
        with pytest.raises(DoesNotFit) as caught:
            Trainer(config).train()
        error = caught.value
    assert error.message.startswith("the device ran out of memory, although ") and MESSAGE in error.message
    assert "plan: " in error.message and "tier" in error.message and "budget" in error.message
    assert "free the device of other programs, or set budget.host: " in error.hint
    assert error.__cause__ is None and threading.active_count() == threads
    gc.collect()
    assert [engine for engine in engines if engine() is not None] == []  # though the error is still there
    assert not (tmp_path / "out/model.safetensors").exists()
    Trainer(config).train()
    assert (tmp_path / "out/model.safetensors").exists()


def test_what_is_named_fits_and_needs_less(config: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("prepare.planning", "run.out_of_memory"):
        monkeypatch.setattr(f"slideformer.{module}.resident_bytes", lambda: 300 * MIB)  # it grows as tests run
    with monkeypatch.context() as patch:
        patch.setattr(compute, "block_recorded", failing_at(2, compute.block_recorded))
        patch.setattr(out_of_memory, "SHARES", (0.5, 0.3))
        with pytest.raises(DoesNotFit) as caught:
            Trainer(config).train()
    named = caught.value.hint.split(", or set budget.host: ")[1].split(", ")[0]
    settings = load_config(config)
    smaller = settings.model_copy(update={"budget": Budget(host=named)})
    assert plan_for(smaller).host_peak_bytes <= parse_bytes(named) < plan_for(settings).host_peak_bytes
