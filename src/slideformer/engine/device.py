"""Which device computes, and in which type."""

import torch

from slideformer.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def device_and_dtype(device: str, compute_dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device ("auto", "cuda", "cpu") and the type that layers compute in ("auto", "bf16", "fp32").

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("device: cuda, but PyTorch sees no GPU", "check the driver, or set device: cpu")
    chosen = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
    if compute_dtype == "auto":
        return chosen, torch.float32 if chosen.type == "cpu" else torch.bfloat16
    return chosen, DTYPES[compute_dtype]
