"""A machine's rates survive their file; one that is not such a file is refused with its place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_machines import machine

from slideformer.errors import ConfigError
from slideformer.plan import rates
from slideformer.plan.rates import ComputeRates
from slideformer.plan.rates_table import render_rates

EXAMPLES = Path(__file__).parents[2] / "examples/machines"


@pytest.mark.parametrize("gpu", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, gpu: bool):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(machine(gpu).as_json()))
    assert rates.read_machine(file) == machine(gpu)
    assert rates.read_machine(file).has_gpu == gpu


@pytest.mark.parametrize(
    ("text", "place"), [("{}", "name"), ("no json", "the file"), ('{"name": 3}', "name"), ("[]", "the file")]
)
def test_another_file_is_refused(tmp_path: Path, text: str, place: str):
    file = tmp_path / "machine.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"machine.json is not a machine: {place}: ") as caught:
        rates.read_machine(file)
    assert "slideformer probe --json" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read .*none.json: No such file"):
        rates.read_machine(tmp_path / "none.json")


def test_the_cache_holds_the_rates_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "cache_file", lambda: tmp_path / "a/machine.json")
    assert rates.cached_rates() is None
    assert rates.store_rates(machine()) == tmp_path / "a/machine.json"
    assert rates.cached_rates() == machine()
    (tmp_path / "a/machine.json").write_text(json.dumps({**machine().as_json(), "format": 0}))
    assert rates.cached_rates() is None  # of another version: measured again


@pytest.mark.usefixtures("own_cache_file")
def test_the_cache_of_another_pytorch_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = rates.cache_file()
    assert before.parent == tmp_path / "slideformer"
    monkeypatch.setattr(rates.torch, "__version__", "99.0")
    assert rates.cache_file() != before


@pytest.fixture
def own_cache_file(monkeypatch: pytest.MonkeyPatch, no_rates_of_this_machine: None) -> None:
    monkeypatch.undo()


def test_the_table_has_every_rate():
    text = render_rates(machine())
    for figure in ("100 TFLOP/s", "25 GB/s alone, 20 GB/s both ways", "2 Gparam/s, 1 under copies", "2 GB/s read"):
        assert figure in text
    assert "host to GPU" not in render_rates(machine(gpu=False))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_an_example_machine_says_where_its_figures_come_from(path: Path):
    assert len(rates.read_machine(path).source) > 20


def test_attention_is_faster_over_long_rows():
    measured = ComputeRates({"bf16": 1.0}, {"bf16": 500e12}, 1.0, long_attention_flops={"bf16": 1000e12})
    assert measured.attention_rate("bf16", 1024) == pytest.approx(500e12)
    assert measured.attention_rate("bf16", 16384) == measured.attention_rate("bf16", 2**20) == pytest.approx(1000e12)
    assert measured.attention_rate("bf16", 512) < 500e12 < measured.attention_rate("bf16", 4096) < 1000e12
    one_rate = replace(measured, long_attention_flops={})
    assert [one_rate.attention_rate("bf16", tokens) for tokens in (128, 65536)] == pytest.approx([500e12] * 2)
