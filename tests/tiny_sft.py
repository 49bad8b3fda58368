"""Tiny data and TRL arguments, for comparing with TRL's own trainer."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

RECORDS = [{"prompt": f"{a}+{b}=", "completion": f" {a + b}" * (a + 1)} for a in range(5) for b in range(2)]
DATA = Dataset.from_list(RECORDS)
SETTINGS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 1e-3, "logging_steps": 1,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
    "train_sampling_strategy": "sequential", "save_strategy": "no", "weight_decay": 0.1, "max_grad_norm": 0.5,
    "lr_scheduler_type": "cosine", "warmup_steps": 2,
}  # fmt: skip


def arguments(directory: Path, **settings: Any) -> Any:
    return pytest.importorskip("trl").SFTConfig(output_dir=str(directory), **SETTINGS | settings)
