"""Liger's RMSNorm, rotary embedding and SwiGLU, where they are installed and know the model."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from inspect import isfunction
from types import ModuleType
from typing import Any, Literal

from slideformer.errors import ConfigError


def choose_kernels(wanted: Literal["auto", "liger", "torch"], device_type: str) -> Literal["liger", "torch"]:
    """What `auto` means here: Liger on a GPU where it is installed.

    Raises:
        ConfigError: Liger was asked for and is not installed.
    """
    installed = find_spec("liger_kernel") is not None
    if wanted == "liger" and not installed:
        raise ConfigError("kernels: liger is not installed", "pip install 'slideformer[gpu]', or set kernels: auto")
    if wanted == "auto":
        return "liger" if installed and device_type != "cpu" else "torch"
    return wanted


def apply_liger(model: Any) -> None:
    """Swap the model's norms, rotary embedding and MLPs for Liger's; a model type Liger does not know is left as it is.

    The LM head and loss stay out: they are the engine's. Liger also replaces names in the model's own Python module,
    for every later model of the family; that is undone, since other models of the process may compute on the CPU. Only
    its rotary embedding, a function that is looked up there, stays, for tensors on a GPU.
    """
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return
    module = sys.modules[type(model).__module__]
    with undone(module):
        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


@contextmanager
def undone(module: ModuleType) -> Iterator[None]:
    """Put back what is replaced in `module` within; replaced functions serve GPU tensors from then on."""
    before = dict(vars(module))
    yield
    for name, now in list(vars(module).items()):
        earlier = before.get(name, now)
        if now is not earlier:
            setattr(module, name, _by_device(now, earlier) if isfunction(earlier) else earlier)


def _by_device(on_gpu: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(elsewhere)
    def choose(first: Any, *args: Any, **kwargs: Any) -> Any:
        return (on_gpu if first.is_cuda else elsewhere)(first, *args, **kwargs)

    return choose
