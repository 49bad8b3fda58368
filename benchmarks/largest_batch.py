"""How many sequences a step may have within a GPU budget: of the sliding engine, and of systems that have no plan.

The sliding engine's plan is asked, and what it says is trained once. Another system trains steps of more and more
sequences until it runs out of memory, each in one pass: accumulated gradients would fit any number, at the price of
moving the weights again for each part.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from systems import BUILDERS, SLIDING, measure_system, peaks, random_tokens, reset_peaks

from slideformer.bench.case import Case
from slideformer.bench.fresh_process import run_fresh
from slideformer.bench.model_config import config_of
from slideformer.bench.sliding import Subject, enforce
from slideformer.errors import DoesNotFit

MOST = 4096  # sequences that are asked for


def find_largest(system: str, case: Case, start: int, growth: int, timeout_seconds: float) -> dict[str, Any]:
    """The result of the largest step, in a process of its own, with `sequences` the number found."""
    asked = json.dumps({"system": system, "case": case.as_json(), "start": start, "growth": growth})
    return run_fresh([sys.executable, __file__, asked], timeout_seconds)


def largest_planned(case: Case) -> dict[str, Any]:
    """One step of as many sequences as the plan allows."""
    subject = Subject(case)

    def fits(sequences: int) -> bool:
        try:
            subject.plan(sequences)
        except DoesNotFit:
            return False
        return True

    low, high = 1, MOST  # low fits or nothing does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    found = replace(case, sequences=low, warm_up=0, steps=1)
    return {"sequences": low, "note": "the plan's largest", **measure_system(SLIDING, found, 1)}


def largest_tried(system: str, case: Case, start: int, growth: int) -> dict[str, Any]:
    """Steps of more and more sequences; the result is the last that there was memory for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config_of(case)
    enforce(case.gpu_budget_bytes)
    step = BUILDERS[system](config, device, start, 1)
    reset_peaks()
    result: dict[str, Any] = {"sequences": 0, "error": f"no memory for {start} sequences"}
    for sequences in range(start, MOST, growth):
        try:
            loss = float(step(random_tokens(sequences, case.length, config.vocab_size, 0).to(device), 1))
        except torch.OutOfMemoryError:
            break
        result = {"sequences": sequences, "losses": [loss], "note": f"{sequences + growth} do not fit", **peaks()}
    return result


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    wanted = Case(**asked["case"])
    if asked["system"] == SLIDING:
        print(json.dumps(largest_planned(wanted)))
    else:
        print(json.dumps(largest_tried(asked["system"], wanted, asked["start"], asked["growth"])))
