"""Every example is a valid config, its plan is that of its budgets, and such plans are near measured ones."""

import json
import re
from pathlib import Path

import pytest
import yaml
from example_plans import END, EXAMPLES, SHAPE_OF_MODEL, START, estimate, plan_of, with_plan

from slideformer.plan.plan import Workload
from slideformer.settings.config import load_config
from slideformer.units import GIB, format_bytes, parse_bytes

RESULTS = Path(__file__).parent.parent / "benchmarks/results"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


def measured_plans() -> list[dict]:
    """What the planner said on an H200, where computation's memory was measured and not estimated."""
    files = sorted(RESULTS.glob("*-step-qwen3-4b-8GiB*.json"))
    results = [result for file in files for result in json.loads(file.read_text())["results"]]
    return [result for result in results if result["system"] == "sliding" and result["recompute"]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_example_is_a_valid_config(path: Path):
    assert load_config(path).output_dir


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_example_shows_the_plan_of_its_budgets(path: Path):
    text, config = path.read_text(), load_config(path)
    if config.model not in SHAPE_OF_MODEL:
        pytest.skip("a model of the reader's own")
    plan = text.partition(START)[2].partition(END)[0]
    budget = config.budget
    assert budget.host and f"  {format_bytes(parse_bytes(budget.host))}\n" in plan
    assert f"sequences of up to {config.max_length} tokens" in " ".join(plan.replace("#", "").split())


@pytest.mark.parametrize("case", measured_plans(), ids=lambda case: f"{case['sequences']} sequences")
def test_an_estimated_plan_is_near_the_measured_one(case: dict):
    workload = Workload(case["sequences"], case["length"], case["clip"], recompute_all=True, resident=0)
    plan = estimate(case["shape"], workload, parse_bytes(case["gpu_budget"]), 128 * GIB)
    assert plan.sizes.micro_batch_size == case["plan"]["micro_batch_size"]
    assert plan.device_peak_bytes / GIB == pytest.approx(case["gpu_planned_gib"], rel=0.02)
    assert plan.host_peak_bytes / GIB == pytest.approx(case["host_planned_gib"], rel=0.02)


def test_a_plan_replaces_the_one_before_it_and_no_setting():
    path = EXAMPLES / "4b-8gib.yaml"
    plan = plan_of(load_config(path))
    without = path.read_text().partition(START)[0] + path.read_text().partition(END)[2]
    once = with_plan(without, plan)
    assert with_plan(once, plan) == once and once.count(START) == 1
    assert yaml.safe_load(once) == yaml.safe_load(without)


def test_the_chat_example_is_that_of_getting_started():
    page = (EXAMPLES.parent / "docs/getting-started.md").read_text(encoding="utf-8")
    (records,), (config,) = (
        re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE) for language in ("json", "yaml")
    )
    assert (EXAMPLES / "chat.jsonl").read_text(encoding="utf-8") == records
    assert yaml.safe_load((EXAMPLES / "chat.yaml").read_text(encoding="utf-8")) == yaml.safe_load(config)
