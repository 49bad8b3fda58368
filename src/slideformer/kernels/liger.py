"""Liger's RMSNorm, rotary embedding and SwiGLU, where they are installed and know the model."""

from importlib.util import find_spec
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

    The LM head and loss stay out: they are the engine's.
    """
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    if model.config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN:
        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
