"""A sample of docs/models.md holds, and the page knows every type. `make parity` checks all of them."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from parity.catalog import all_types
from parity.page import read, render
from parity.suite import PAGE, Outcome, check_safely

# One of each kind: dense, experts stacked and listed, linear attention, state space, several streams, shared inputs,
# parameters that nothing reaches, two towers, encoders as decoders; and one for each reason to refuse.
SAMPLE = [
    "llama", "llama4_text", "qwen3", "qwen3_next", "qwen3_5_moe", "gemma2", "gemma3", "gemma4_text", "gpt_neox",
    "gpt_oss", "deepseek_v2", "deepseek_v3", "deepseek_v4", "mixtral", "olmo", "phimoe", "mamba2", "jamba",
    "granitemoehybrid",
    "falcon_h1", "minimax", "lfm2", "rwkv", "openai-gpt", "bloom", "bert", "bart",
    "zamba2", "zaya", "gemma3n_text", "xlnet", "dory",
]  # fmt: skip


@pytest.mark.parametrize("model_type", SAMPLE)
def test_the_outcome_is_the_page_s(model_type: str):
    written_with, results = read(PAGE.read_text(encoding="utf-8"))
    outcome = check_safely(model_type)
    assert outcome.result in ("exact", "refused", "not buildable"), outcome
    if version("transformers") == written_with:
        assert outcome.result == results[model_type], outcome


def test_the_page_knows_every_type_and_nothing_is_wrong():
    written_with, results = read(PAGE.read_text(encoding="utf-8"))
    assert {"wrong", "crashed"}.isdisjoint(results.values())
    assert list(results.values()).count("exact") >= 150
    if version("transformers") == written_with:
        assert sorted(results) == all_types()


def test_weights_beyond_the_tolerance_say_how_far_plain_rounding_goes():
    rows = re.findall(r"^\| \S+ \| \S+ \| \S+ \| (\d\S+)(?: \(fp32 from fp64: (\S+)\))? \|$", PAGE.read_text(), re.M)
    assert len(rows) >= 150
    assert all(float(weights) <= (float(rounding) if rounding else 1e-5) for weights, rounding in rows)
    assert any(rounding for _, rounding in rows)


def test_a_page_is_read_as_it_was_written(tmp_path: Path):
    outcomes = [
        Outcome("llama", "exact", "1e-07 | 1e-06 | 1e-07"),
        Outcome("xlnet", "refused", "a token sees <those> behind it"),
    ]
    assert read(render(outcomes)) == (version("transformers"), {"llama": "exact", "xlnet": "refused"})
