"""The commands that measure this machine: probe, bench and trace."""

import argparse
import json
import sys
from pathlib import Path

from slideformer.bench.arguments import add_memory_options, case_fields, size_or_none
from slideformer.commands.arguments import Commands, no_overrides, positive
from slideformer.errors import SlideFormerError


def add_commands(commands: Commands) -> None:
    probe = commands.add_parser(
        "probe", help="measure how fast this machine is, once, for plans in seconds", allow_abbrev=False
    )
    probe.add_argument("--fresh", action="store_true", help="measure again")
    probe.add_argument("--json", action="store_true", help="print the rates as JSON, for `plan --machine`")
    probe.add_argument("--directory", type=Path, default=Path("."), help="whose disk is measured (default: this one)")
    probe.set_defaults(command=_probe)

    bench = _measuring_command(commands, "bench", "measure training steps on this machine, random weights and tokens")
    bench.add_argument(
        "--sequences", type=positive, nargs="+", default=[8, 32], metavar="N", help="sequences a step (default: 8 32)"
    )
    bench.add_argument(
        "--gpu-budget", type=size_or_none, nargs="+", default=[None], metavar="SIZE",
        help="GPU memory it may use, such as 24GiB; none (default): what is free",
    )  # fmt: skip
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    bench.set_defaults(command=_bench)

    trace = _measuring_command(commands, "trace", "record what runs when in a few steps, and say where the time went")
    trace.add_argument("--sequences", type=positive, default=8, metavar="N", help="sequences a step (default: 8)")
    trace.add_argument("--gpu-budget", type=size_or_none, metavar="SIZE", help="GPU memory it may use, such as 24GiB")
    trace.add_argument(
        "--out", type=Path, default=Path("trace.json"), metavar="FILE", help="the trace (default: trace.json)"
    )
    trace.set_defaults(command=_trace)


def _measuring_command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, allow_abbrev=False)
    command.add_argument("model", metavar="MODEL", help="a shape such as qwen3-4b, a model directory, or a hub id")
    command.add_argument("--length", type=positive, default=1024, metavar="N", help="tokens a sequence (default: 1024)")
    command.add_argument("--steps", type=positive, default=3, metavar="N", help="measured steps (default: 3)")
    command.add_argument("--warm-up", type=positive, default=2, metavar="N", help="steps before them (default: 2)")
    command.add_argument("--clip", action="store_true", help="clip gradients: updates wait for the norm")
    command.add_argument("--threads", type=positive, metavar="N", help="of AdamW on the CPU (default: chosen)")
    command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where layers compute")
    add_memory_options(command)
    return command


def _probe(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.engine.block_calls import block_call_seconds
    from slideformer.plan.probe import probe
    from slideformer.plan.rates import cached_rates, store_rates
    from slideformer.plan.rates_table import render_rates

    rates = None if arguments.fresh else cached_rates()
    if rates is None:
        print("measuring this machine; nothing else should run on it meanwhile", file=sys.stderr)
        rates = probe(arguments.directory, block_call_seconds)
        store_rates(rates)
    print(json.dumps(rates.as_json(), indent=2) if arguments.json else render_rates(rates))


def _bench(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.bench.case import Case
    from slideformer.bench.command import bench

    shared, budgets = case_fields(arguments), arguments.gpu_budget
    cases = [Case(**shared, sequences=n, gpu_budget_bytes=b) for n in arguments.sequences for b in budgets]
    results = bench(cases, arguments.json)
    if all("error" in result for result in results):
        raise SlideFormerError("no case could be measured", hint="the errors are under the table")


def _trace(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.bench.case import Case
    from slideformer.bench.trace import trace

    of_one = {"sequences": arguments.sequences, "gpu_budget_bytes": arguments.gpu_budget}
    print(trace(Case(**case_fields(arguments), **of_one), arguments.out))
