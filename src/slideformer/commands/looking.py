"""The commands that look at what goes into a run and what came out: data, report, generate and export."""

import argparse
from pathlib import Path

from slideformer.bench.arguments import size
from slideformer.commands.arguments import Commands, config_command, no_overrides, not_negative, positive, probability
from slideformer.errors import ConfigError
from slideformer.settings.config import load_config


def add_commands(commands: Commands) -> None:
    data = config_command(commands, "data", "show what a config trains on: samples, lengths, counts")
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


def _generate_command(commands: Commands) -> None:
    command = commands.add_parser(
        "generate", help="let a model answer prompts, also one larger than GPU memory", allow_abbrev=False
    )
    command.add_argument("model", metavar="MODEL", help="a model directory, a hub id, or the config of a finished run")
    prompts = command.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with one a line, or JSONL")
    command.add_argument("--max_new_tokens", type=positive, default=256, help="of each answer (default: 256)")
    command.add_argument("--temperature", type=not_negative, default=0.0, help="0 (default): the likeliest token")
    command.add_argument("--top_p", type=probability, help="draw among tokens that together have this probability")
    command.add_argument("--top_k", type=positive, help="draw among so many of the likeliest tokens")
    command.add_argument("--seed", type=int, default=42, help="decides what is drawn (default: 42)")
    command.add_argument("--raw", action="store_true", help="without the chat template")
    command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where layers compute")
    command.add_argument("--compute_dtype", choices=("auto", "bf16", "fp32"), default="auto", help="as in a config")
    command.add_argument(
        "--budget.gpu", dest="gpu", type=size, metavar="SIZE", help="GPU memory it may use, such as 8GiB"
    )
    command.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")
    command.set_defaults(command=_generate)


def _data(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from slideformer.prepare.reading import show_data

    show_data(config, arguments.samples)


def _report(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.report.page import write_report

    print(write_report(arguments.run, arguments.out))


def _generate(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    if not arguments.prompts and not arguments.prompt:
        raise ConfigError("command line: there is no prompt", hint='add --prompt "...", or --prompts FILE')
    if not arguments.temperature and (arguments.top_p or arguments.top_k):
        raise ConfigError("command line: nothing is drawn at temperature 0", hint="add --temperature 0.7, for example")
    from slideformer.generation import Request, generate

    names = ("model", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "raw", "device", "compute_dtype")
    chosen = {name: getattr(arguments, name) for name in (*names, "trust_remote_code")}
    generate(Request(**chosen, prompts=arguments.prompts or arguments.prompt, gpu_budget_bytes=arguments.gpu))


def _export(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.run.saving import export

    export(arguments.source, arguments.out, arguments.dtype)
