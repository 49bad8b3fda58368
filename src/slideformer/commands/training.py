"""The commands that take a config whole: train and plan."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from slideformer.commands.arguments import Commands, config_command, positive
from slideformer.errors import ConfigError
from slideformer.settings.config import Config, load_config, parse_overrides
from slideformer.settings.words import in_yaml

if TYPE_CHECKING:
    from slideformer.plan.rates import MachineRates

RESUME = "resume_from_checkpoint"


def add_commands(commands: Commands) -> None:
    train = config_command(commands, "train", "fine-tune a model and save it in output_dir")
    train.set_defaults(command=_train)

    plan = config_command(commands, "plan", "show the memory and the schedule a config needs; allocates nothing")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument("--machine", type=Path, metavar="FILE", help="plan for the machine that `probe --json` printed")
    plan.add_argument(
        "--batch-sizes",
        type=positive,
        nargs="+",
        metavar="N",
        help="a table: which batch sizes fit, and how fast each is",
    )
    plan.add_argument("--plot", type=Path, metavar="FILE", help="draw memory and lanes over a step (.png or .svg)")
    plan.set_defaults(command=_plan)


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from slideformer.run.trainer import Trainer

    if (checkpoint := Trainer(config).train()) is not None:
        kept = [f"--{key}={in_yaml(value)}" for key, value in parse_overrides(overrides).items() if key != RESUME]
        command = shlex.join(["slideformer", "train", str(arguments.config), *kept, f"--{RESUME}=auto"])
        print(f"stopped after {checkpoint.name}; to go on:\n  {command}")


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(arguments.config, overrides)
    from slideformer.plan.rates import read_machine
    from slideformer.plan.table import NO_RATES, render
    from slideformer.prepare.job import plan_for

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
    from slideformer.plan.batch_table import batch_sizes_as_json, render_batch_sizes
    from slideformer.prepare.job import plan_batch_sizes

    if arguments.plot:
        raise ConfigError("command line: --plot draws one plan", hint="leave --batch-sizes out, or --plot")
    plans = plan_batch_sizes(config, arguments.batch_sizes, machine)
    print(json.dumps(batch_sizes_as_json(plans), indent=2) if arguments.json else render_batch_sizes(plans))
