"""`slideformer trace`: a few steps as a trace for Perfetto, and a page that says where the time went."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideformer.bench.case import Case
from slideformer.bench.recording import Recording
from slideformer.bench.sliding import Subject, enforce, peak_bytes
from slideformer.bench.spans import ADAMW, COMPUTE, LANES, Breakdown, Span, break_down
from slideformer.engine.random_weights import random_weights
from slideformer.lanes.lanes import lanes_for
from slideformer.plan.plan import Plan
from slideformer.plan.timing import StepTiming


def trace(case: Case, out: Path) -> str:
    """Train random weights, write the trace of the counted steps to `out`; returns the summary.

    Raises:
        DoesNotFit: the plan says so.
    """
    subject = Subject(case)
    enforce(case.gpu_budget_bytes)
    plan = subject.plan(case.sequences)
    recorded = record(subject, plan)
    out.write_text(json.dumps(as_trace(recorded.spans)), encoding="utf-8")
    breakdown = break_down(recorded.spans, recorded.seconds)
    return f"{summary(case, breakdown, plan.timing)}\nthe trace: {out} (open it at ui.perfetto.dev)"


@dataclass(frozen=True)
class Recorded:
    """The counted steps of a case.

    Attributes:
        spans: what ran.
        seconds: until the last update.
        peak_bytes: as `peak_bytes` gives them, of all steps.
    """

    spans: list[Span]
    seconds: float
    peak_bytes: dict[str, Any]


def record(subject: Subject, plan: Plan) -> Recorded:
    """Train random weights by a plan."""
    case = subject.case
    recording = Recording(lanes_for(subject.device))
    with subject.engine(plan, recording.lanes) as engine:
        recording.watch(engine.updates)
        engine.load(random_weights(engine, subject.config, 0))
        batches = [subject.batch(step) for step in range(1, case.warm_up + case.steps + 1)]
        subject.reset_peaks()
        begun = time.perf_counter()
        for step, batch in enumerate(batches, 1):
            if step == case.warm_up + 1:
                engine.drain()
                recording.begin()
                begun = time.perf_counter()
            subject.step(engine, batch, step)
        engine.drain()
        seconds = time.perf_counter() - begun
        return Recorded(recording.spans(), seconds, peak_bytes(subject.device, plan))


def as_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """Chrome's trace format: a thread a lane, a complete event a span, in microseconds."""
    rows = {lane: row for row, lane in enumerate(LANES)}
    names = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": row, "args": {"name": lane}} for lane, row in rows.items()
    ]
    events = [
        {"ph": "X", "name": s.name, "cat": s.lane, "pid": 0, "tid": rows[s.lane], "ts": s.begin * 1e6,
         "dur": (s.end - s.begin) * 1e6}
        for s in spans
    ]  # fmt: skip
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


def summary(case: Case, breakdown: Breakdown, timing: StepTiming | None) -> str:
    """One page: a line a lane, then the bound and the break-even, with the prediction beside them."""
    step, share = breakdown.seconds / case.steps, 100 / breakdown.seconds
    predicted = f" (predicted {timing.seconds:.3f} s)" if timing else ""
    lines = [f"{case.model}, {case.sequences} x {case.length}: {step:.3f} s a step{predicted}, "
             f"{case.tokens / step:,.0f} tokens/s",
             "lane       busy s a step   share   exposed  predicted busy"]  # fmt: skip
    for lane in LANES:
        exposed = "" if lane == COMPUTE else f"{breakdown.exposed[lane] * share:.1f}%"
        planned = f"{timing.lanes[lane]:.3f}" if timing and lane in timing.lanes else "-"
        busy = breakdown.busy[lane]
        lines.append(f"{lane:<10} {busy / case.steps:>13.3f} {busy * share:>6.1f}% {exposed:>9} {planned:>15}")
    lines.append(f"idle       {breakdown.idle / case.steps:>13.3f} {breakdown.idle * share:>6.1f}%")
    lines.append(f"bound: {breakdown.bound}" + (f" (predicted {timing.bound})" if timing else ""))
    if (tokens := breakdown.break_even_tokens(case.tokens)) and breakdown.busy[ADAMW]:
        beside = f" (predicted {timing.break_even_tokens:,.0f})" if timing else ""
        lines.append(f"break-even: {tokens:,.0f} tokens a step{beside}; below, AdamW takes longer than computation")
    return "\n".join(lines)
