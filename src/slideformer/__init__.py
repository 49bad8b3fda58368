"""Full-parameter fine-tuning of models larger than GPU memory.

    import slideformer
    slideformer.Trainer("config.yaml").train()

Names are imported when first used, so that `import slideformer` costs nothing.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("slideformer")  # said once, in pyproject.toml

# Large buffers come and go within a step (the head and its gradient); without growing segments a budget of 8 GiB lost
# 1.2 GiB to fragmentation. Read when the GPU is first used; a value of the user's own stays.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

if TYPE_CHECKING:
    from slideformer.data.batches import Batch
    from slideformer.engine.custom_loss import TokenChunk
    from slideformer.engine.pretrained import Engine
    from slideformer.errors import SlideFormerError
    from slideformer.listeners.events import Listener, Wishes
    from slideformer.listeners.metrics import EvalStats, RunRecord, Sample, StepStats
    from slideformer.listeners.run_directory import read_log, read_metrics
    from slideformer.listeners.transformers_callbacks import HuggingFaceListener
    from slideformer.optim.adamw import AdamWStep
    from slideformer.plan.pins import Pins
    from slideformer.prepare.job import plan_for
    from slideformer.run.saving import export
    from slideformer.run.trainer import Trainer
    from slideformer.settings.config import Config, as_config, load_config

_MODULES = {
    "AdamWStep": "optim.adamw",
    "Batch": "data.batches",
    "Config": "settings.config",
    "Engine": "engine.pretrained",
    "EvalStats": "listeners.metrics",
    "HuggingFaceListener": "listeners.transformers_callbacks",
    "Listener": "listeners.events",
    "Pins": "plan.pins",
    "RunRecord": "listeners.metrics",
    "Sample": "listeners.metrics",
    "SlideFormerError": "errors",
    "StepStats": "listeners.metrics",
    "TokenChunk": "engine.custom_loss",
    "Trainer": "run.trainer",
    "Wishes": "listeners.events",
    "as_config": "settings.config",
    "export": "run.saving",
    "load_config": "settings.config",
    "plan_for": "prepare.job",
    "read_log": "listeners.run_directory",
    "read_metrics": "listeners.run_directory",
}

__all__ = [
    "AdamWStep",
    "Batch",
    "Config",
    "Engine",
    "EvalStats",
    "HuggingFaceListener",
    "Listener",
    "Pins",
    "RunRecord",
    "Sample",
    "SlideFormerError",
    "StepStats",
    "TokenChunk",
    "Trainer",
    "Wishes",
    "as_config",
    "export",
    "load_config",
    "plan_for",
    "read_log",
    "read_metrics",
]


def __getattr__(name: str) -> Any:
    """The public names (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
