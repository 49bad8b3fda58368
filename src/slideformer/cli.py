"""The command line: train, plan, probe, bench, trace, data, generate, report, doctor, export, demo, completion.

Heavy imports wait inside the commands, so that help and a misspelt setting answer at once.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import PydanticUndefined

from slideformer import __version__
from slideformer.bench.arguments import add_memory_options, case_fields, size, size_or_none
from slideformer.config import Config, load_config, parse_overrides, setting_fields
from slideformer.errors import ConfigError, SlideFormerError
from slideformer.setting_words import expected, in_yaml

if TYPE_CHECKING:
    from slideformer.plan.rates import MachineRates

RESUME = "resume_from_checkpoint"
CONFIG_USAGE = "slideformer {} CONFIG.yaml [--key value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. SLIDEFORMER_TRACEBACK=1 lets errors through with their traceback."""
    parser = _parser()
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        arguments.command(arguments, overrides)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        return 141  # 128 + SIGPIPE
    except SlideFormerError as error:
        if os.environ.get("SLIDEFORMER_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from slideformer.trainer import Trainer

    if (checkpoint := Trainer(config).train()) is not None:
        kept = [f"--{key}={in_yaml(value)}" for key, value in parse_overrides(overrides).items() if key != RESUME]
        command = shlex.join(["slideformer", "train", str(arguments.config), *kept, f"--{RESUME}=auto"])
        print(f"stopped after {checkpoint.name}; to go on:\n  {command}")


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from slideformer.job import plan_for
    from slideformer.plan.rates import read_machine
    from slideformer.plan.table import NO_RATES, render

    machine = read_machine(arguments.machine) if arguments.machine else None
    if arguments.batch_sizes:
        return _plan_batch_sizes(config, arguments, machine)
    plan = plan_for(config, machine)
    if arguments.plot:
        from slideformer.plan.plot import write_picture

        write_picture(plan, arguments.plot)
    print(json.dumps(plan.as_json(), indent=2) if arguments.json else render(plan))
    if plan.timing is None and not arguments.json:
        print(NO_RATES)


def _plan_batch_sizes(config: Config, arguments: argparse.Namespace, machine: "MachineRates | None") -> None:
    from slideformer.job import plan_batch_sizes
    from slideformer.plan.batch_table import batch_sizes_as_json, render_batch_sizes

    if arguments.plot:
        raise ConfigError("command line: --plot draws one plan", hint="leave --batch-sizes out, or --plot")
    plans = plan_batch_sizes(config, arguments.batch_sizes, machine)
    print(json.dumps(batch_sizes_as_json(plans), indent=2) if arguments.json else render_batch_sizes(plans))


def _probe(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.plan.probe import probe
    from slideformer.plan.rates import cached_rates, store_rates
    from slideformer.plan.rates_table import render_rates

    rates = None if arguments.fresh else cached_rates()
    if rates is None:
        print("measuring this machine; nothing else should run on it meanwhile", file=sys.stderr)
        rates = probe(arguments.directory)
        store_rates(rates)
    print(json.dumps(rates.as_json(), indent=2) if arguments.json else render_rates(rates))


def _bench(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.bench.case import Case
    from slideformer.bench.command import bench

    shared, budgets = case_fields(arguments), arguments.gpu_budget
    cases = [Case(**shared, sequences=n, gpu_budget_bytes=b) for n in arguments.sequences for b in budgets]
    results = bench(cases, arguments.json)
    if all("error" in result for result in results):
        raise SlideFormerError("no case could be measured", hint="the errors are under the table")


def _trace(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.bench.case import Case
    from slideformer.bench.trace import trace

    of_one = {"sequences": arguments.sequences, "gpu_budget_bytes": arguments.gpu_budget}
    print(trace(Case(**case_fields(arguments), **of_one), arguments.out))


def _data(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from slideformer.reading import show_data

    show_data(config, arguments.samples)


def _report(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.report.page import write_report

    print(write_report(arguments.run, arguments.out))


def _generate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    if not arguments.prompts and not arguments.prompt:
        raise ConfigError("command line: there is no prompt", hint='add --prompt "...", or --prompts FILE')
    if not arguments.temperature and (arguments.top_p or arguments.top_k):
        raise ConfigError("command line: nothing is drawn at temperature 0", hint="add --temperature 0.7, for example")
    from slideformer.generation import Request, generate

    names = ("model", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "raw", "device", "compute_dtype")
    chosen = {name: getattr(arguments, name) for name in (*names, "trust_remote_code")}
    generate(Request(**chosen, prompts=arguments.prompts or arguments.prompt, gpu_budget_bytes=arguments.gpu))


def _export(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.saving import export

    export(arguments.source, arguments.out, arguments.dtype)


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.demo.main import run

    run(device=arguments.device)


def _doctor(_: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.doctor import examine

    for finding in examine(Path.cwd()):
        print(finding)


def _completion(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _no_overrides(overrides)
    from slideformer.completion import completion_script

    print(completion_script(_parser(), arguments.shell))


def _no_overrides(words: list[str]) -> None:
    if words:
        raise ConfigError(f"command line: {words[0]!r} is not known", hint="add --help to see what the command takes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slideformer", description="Full-parameter fine-tuning of language models larger than GPU memory."
    )
    parser.add_argument("--version", action="version", version=f"slideformer {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    train = _config_command(commands, "train", "fine-tune a model and save it in output_dir")
    train.set_defaults(command=_train)

    plan = _config_command(commands, "plan", "show the memory and the schedule a config needs; allocates nothing")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument("--machine", type=Path, metavar="FILE", help="plan for the machine that `probe --json` printed")
    plan.add_argument(
        "--batch-sizes",
        type=_positive,
        nargs="+",
        metavar="N",
        help="a table: which batch sizes fit, and how fast each is",
    )
    plan.add_argument("--plot", type=Path, metavar="FILE", help="draw memory and lanes over a step (.png or .svg)")
    plan.set_defaults(command=_plan)

    probe = commands.add_parser(
        "probe", help="measure how fast this machine is, once, for plans in seconds", allow_abbrev=False
    )
    probe.add_argument("--fresh", action="store_true", help="measure again")
    probe.add_argument("--json", action="store_true", help="print the rates as JSON, for `plan --machine`")
    probe.add_argument("--directory", type=Path, default=Path("."), help="whose disk is measured (default: this one)")
    probe.set_defaults(command=_probe)

    bench = _measuring_command(commands, "bench", "measure training steps on this machine, random weights and tokens")
    bench.add_argument(
        "--sequences", type=_positive, nargs="+", default=[8, 32], metavar="N", help="sequences a step (default: 8 32)"
    )
    bench.add_argument(
        "--gpu-budget", type=size_or_none, nargs="+", default=[None], metavar="SIZE",
        help="GPU memory it may use, such as 24GiB; none (default): what is free",
    )  # fmt: skip
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    bench.set_defaults(command=_bench)

    trace = _measuring_command(commands, "trace", "record what runs when in a few steps, and say where the time went")
    trace.add_argument("--sequences", type=_positive, default=8, metavar="N", help="sequences a step (default: 8)")
    trace.add_argument("--gpu-budget", type=size_or_none, metavar="SIZE", help="GPU memory it may use, such as 24GiB")
    trace.add_argument(
        "--out", type=Path, default=Path("trace.json"), metavar="FILE", help="the trace (default: trace.json)"
    )
    trace.set_defaults(command=_trace)

    data = _config_command(commands, "data", "show what a config trains on: samples, lengths, counts")
    data.add_argument("--samples", type=int, default=3, help="records to show in full (default: 3)")
    data.set_defaults(command=_data)

    report = commands.add_parser(
        "report", help="write what a run was and how it went as one HTML page", allow_abbrev=False
    )
    report.add_argument("run", metavar="RUN_DIR", type=Path, help="output_dir of a run, finished or not")
    report.add_argument("--out", type=Path, help="file to write (default: RUN_DIR/report.html)")
    report.set_defaults(command=_report)

    _generate_command(commands)

    export = commands.add_parser(
        "export", help="write a trained model as a Hugging Face model directory", allow_abbrev=False
    )
    export.add_argument("source", metavar="SOURCE", type=Path, help="output_dir of a run, or a saved model")
    export.add_argument("out", metavar="OUT", type=Path, help="directory to create")
    export.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="type of the weights (default: bf16)")
    export.set_defaults(command=_export)

    doctor = commands.add_parser("doctor", help="show what this machine has for a run, and what it lacks")
    doctor.set_defaults(command=_doctor)

    demo = commands.add_parser(
        "demo", help="fine-tune a small real model on real data, start to end", allow_abbrev=False
    )
    demo.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where layers compute")
    demo.set_defaults(command=_demo)

    completion = commands.add_parser(
        "completion", help="print a script that lets your shell complete commands and settings", allow_abbrev=False
    )
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    completion.set_defaults(command=_completion)
    return parser


def _measuring_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, allow_abbrev=False)
    command.add_argument("model", metavar="MODEL", help="a shape such as qwen3-4b, a model directory, or a hub id")
    command.add_argument(
        "--length", type=_positive, default=1024, metavar="N", help="tokens a sequence (default: 1024)"
    )
    command.add_argument("--steps", type=_positive, default=3, metavar="N", help="measured steps (default: 3)")
    command.add_argument("--warm-up", type=_positive, default=2, metavar="N", help="steps before them (default: 2)")
    command.add_argument("--clip", action="store_true", help="clip gradients: updates wait for the norm")
    command.add_argument("--threads", type=_positive, metavar="N", help="of AdamW on the CPU (default: chosen)")
    command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where layers compute")
    add_memory_options(command)
    return command


def _generate_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "generate", help="let a model answer prompts, also one larger than GPU memory", allow_abbrev=False
    )
    command.add_argument("model", metavar="MODEL", help="a model directory, a hub id, or the config of a finished run")
    prompts = command.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with one a line, or JSONL")
    command.add_argument("--max_new_tokens", type=_positive, default=256, help="of each answer (default: 256)")
    command.add_argument("--temperature", type=_not_negative, default=0.0, help="0 (default): the likeliest token")
    command.add_argument("--top_p", type=_probability, help="draw among tokens that together have this probability")
    command.add_argument("--top_k", type=_positive, help="draw among so many of the likeliest tokens")
    command.add_argument("--seed", type=int, default=42, help="decides what is drawn (default: 42)")
    command.add_argument("--raw", action="store_true", help="without the chat template")
    command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where layers compute")
    command.add_argument("--compute_dtype", choices=("auto", "bf16", "fp32"), default="auto", help="as in a config")
    command.add_argument(
        "--budget.gpu", dest="gpu", type=size, metavar="SIZE", help="GPU memory it may use, such as 8GiB"
    )
    command.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")
    command.set_defaults(command=_generate)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return value


def _not_negative(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def _probability(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to 1")
    return value


def _config_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        usage=CONFIG_USAGE.format(name),
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("config", metavar="CONFIG.yaml", type=Path, help="settings of the run")
    return command


def _settings_help() -> str:
    """Every setting with its default and its meaning."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = ["settings, in CONFIG.yaml or as --key value (which wins), with their defaults:"]
    for key, field in setting_fields():
        default = "required" if field.default is PydanticUndefined else in_yaml(field.default)
        text = f"{field.description} ({expected(field)})"
        lines += textwrap.wrap(
            f"{key:<20} {default:<12} {text}", width, initial_indent="  ", subsequent_indent=" " * 36
        )
    return "\n".join(lines)
