"""A trace holds every block's work, lane by lane, and leaves the weights as they would have been."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import torch

from slideformer.bench.case import Case
from slideformer.bench.recording import Recording
from slideformer.bench.sliding import Subject
from slideformer.bench.trace import record
from slideformer.cli import main
from slideformer.engine.engine import Engine
from slideformer.engine.random_weights import random_weights
from slideformer.lanes.lanes import lanes_for

CASE = Case("tiny", 2, 16, steps=2, warm_up=1, device="cpu", threads=1, matmul_flops=1e9)
ARGUMENTS = ["tiny", "--length", "16", "--steps", "2", "--warm-up", "1", "--device", "cpu", "--threads", "1"]


def test_a_trace_holds_every_block_and_no_overlap(tmp_path, capsys):
    path = tmp_path / "trace.json"
    assert main(["trace", *ARGUMENTS, "--sequences", "2", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "bound: " in printed and "break-even: " in printed and "idle" in printed
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    lanes = defaultdict(list)
    for event in events:
        lanes[event["tid"]].append(event)
        assert event["ts"] >= 0 and event["dur"] >= 0
    for spans in lanes.values():
        spans.sort(key=lambda event: event["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(spans))
    names = [event["name"] for event in events]
    for block in range(4):
        for name in (f"forward {block}", f"backward {block}", f"update model.layers.{block}"):
            assert names.count(name) == 2, name
        assert f"fetch {block}" in names
    assert names.count("head") == 2 and "fetch shell" in names


def test_a_resident_block_is_updated_in_computation_and_others_are_sent():
    case = replace(CASE, micro_batch_size=1)
    subject = Subject(case)
    plan = subject.plan(case.sequences)
    subject.dtype = torch.bfloat16  # no plan for a CPU has such blocks, but its engine can
    recorded = record(subject, replace(plan, sizes=replace(plan.sizes, resident=1)))
    counts = Counter((span.lane, span.name) for span in recorded.spans)
    for block in range(4):
        sent = case.steps if block else 0
        assert counts["compute", f"backward {block}"] == 2 * case.steps  # micro-batches
        assert counts["compute", f"flush {block}"] == case.steps
        assert counts["d2h", f"send {block}"] == counts["adamw", f"update model.layers.{block}"] == sent
        assert counts["compute", f"update {block}"] == case.steps - sent
    assert recorded.seconds > 0 and recorded.peak_bytes["host_peak_bytes"] > 0


def test_tracing_changes_no_bit():
    plain, traced = _weights(False), _weights(True)
    assert plain.keys() == traced.keys() and plain
    assert all(torch.equal(plain[name], traced[name]) for name in plain)


def _weights(record: bool) -> dict[str, torch.Tensor]:
    subject, lanes = Subject(CASE), lanes_for(torch.device("cpu"))
    recording = Recording(lanes)
    sizes = subject.plan(CASE.sequences).sizes
    with Engine(subject.decoder, sizes, subject.dtype, recording.lanes if record else lanes, threads=1) as engine:
        if record:
            recording.watch(engine.updates)
        engine.load(random_weights(engine, subject.config, 0))
        for step in (1, 2):
            subject.step(engine, subject.batch(step), step)
        engine.drain()
        assert bool(recording.spans()) == record
        found = {}
        for unit, state in engine.states.items():
            with state.opened(change=False) as whole:
                found |= {f"{unit} {name}": tensor.clone() for name, tensor in whole.tensors().items()}
        return found
