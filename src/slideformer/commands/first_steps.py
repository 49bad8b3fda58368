"""The commands around a first run: doctor, demo and completion."""

import argparse
from functools import partial
from pathlib import Path

from slideformer.commands.arguments import Commands, no_overrides


def add_commands(commands: Commands, parser: argparse.ArgumentParser) -> None:
    """`parser` is what `completion` completes: the one that has these commands."""
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
    completion.set_defaults(command=partial(_completion, parser))


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.demo.main import run

    run(device=arguments.device)


def _doctor(_: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.commands.doctor import examine

    for finding in examine(Path.cwd()):
        print(finding)


def _completion(parser: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: list[str]) -> None:
    no_overrides(overrides)
    from slideformer.commands.completion import completion_script

    print(completion_script(parser, arguments.shell))
