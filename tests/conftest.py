"""What every test shares: no rates of this machine; tests marked `gpu` are skipped where there is none."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def no_rates_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Plans in tests do not depend on whether `slideformer probe` ran here."""
    from slideformer.plan import rates

    absent: Path = tmp_path_factory.getbasetemp() / "no-cache" / "machine.json"
    monkeypatch.setattr(rates, "cache_file", lambda: absent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():  # ROCm as well
        return
    skip = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
