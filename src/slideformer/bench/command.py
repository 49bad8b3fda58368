"""`slideformer bench`: every case in a fresh process, one after the other."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from slideformer.bench.case import Case
from slideformer.bench.fresh_process import run_fresh
from slideformer.bench.table import render

TIMEOUT_SECONDS = 1800.0


def bench(cases: Sequence[Case], out: Path | None) -> list[dict[str, Any]]:
    """Measure the cases, print the table, and write cases, results and versions to `out`.

    A case that fails has an "error" instead of measurements; the others go on.
    """
    results = []
    for case in cases:
        print(f"{case.model}: {case.sequences} x {case.length}", file=sys.stderr, flush=True)
        results.append(run_case(case))
    print(render(results))
    if out is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        out.write_text(json.dumps({"versions": versions, "results": results}, indent=1), encoding="utf-8")
    return results


def run_case(case: Case, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
    """The case's fields, and what was measured in a process of its own, or "error"."""
    command = [sys.executable, "-m", "slideformer.bench.sliding", json.dumps(case.as_json())]
    return {**case.as_json(), **run_fresh(command, timeout_seconds)}
