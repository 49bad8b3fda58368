"""Liger's replacements reach the model that asked for them, and nothing else of the process."""

from types import ModuleType, SimpleNamespace

import pytest

from slideformer.errors import ConfigError
from slideformer.kernels import liger
from slideformer.kernels.liger import choose_kernels, undone


def _module() -> ModuleType:
    module = ModuleType("modeling_made_up")
    module.__dict__["Norm"] = type("Norm", (), {})
    module.__dict__["rotate"] = lambda x: "torch"
    return module


def test_classes_are_put_back_and_functions_go_by_device():
    module = _module()
    norm = module.Norm
    with undone(module):
        module.__dict__["Norm"] = type("FastNorm", (), {})
        module.__dict__["rotate"] = lambda x: "liger"
    assert module.Norm is norm
    assert module.rotate(SimpleNamespace(is_cuda=False)) == "torch"
    assert module.rotate(SimpleNamespace(is_cuda=True)) == "liger"


def test_liger_is_chosen_on_a_gpu_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(liger, "find_spec", lambda name: object())
    assert choose_kernels("auto", "cuda") == "liger"
    assert choose_kernels("auto", "cpu") == "torch"
    assert choose_kernels("torch", "cuda") == "torch"


def test_liger_that_is_not_installed_is_refused_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    assert choose_kernels("auto", "cuda") == "torch"
    with pytest.raises(ConfigError, match="liger is not installed"):
        choose_kernels("liger", "cuda")
