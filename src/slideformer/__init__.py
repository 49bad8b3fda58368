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
    from slideformer.config import Config, load_config
    from slideformer.data.batches import Batch
    from slideformer.engine.custom_loss import TokenChunk
    from slideformer.engine.engine import Engine
    from slideformer.errors import SlideFormerError
    from slideformer.events import Listener, Wishes
    from slideformer.optim.adamw import AdamWStep
    from slideformer.plan.pins import Pins
    from slideformer.trainer import Trainer

_MODULES = {
    "AdamWStep": "optim.adamw",
    "Batch": "data.batches",
    "Config": "config",
    "Engine": "engine.engine",
    "Listener": "events",
    "Pins": "plan.pins",
    "SlideFormerError": "errors",
    "TokenChunk": "engine.custom_loss",
    "Trainer": "trainer",
    "Wishes": "events",
    "load_config": "config",
}

__all__ = [
    "AdamWStep",
    "Batch",
    "Config",
    "Engine",
    "Listener",
    "Pins",
    "SlideFormerError",
    "TokenChunk",
    "Trainer",
    "Wishes",
    "load_config",
]


def __getattr__(name: str) -> Any:
    """The public names (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
