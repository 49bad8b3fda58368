"""The command line: train, plan, probe, bench, trace, data, report, generate, export, doctor, demo, completion.

`slideformer.commands` has what each takes beside what it does. Heavy imports wait inside the commands, so that help and
a misspelt setting answer at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from slideformer import __version__
from slideformer.commands import first_steps, looking, measuring, training
from slideformer.errors import SlideFormerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. SLIDEFORMER_TRACEBACK=1 lets errors through with their traceback."""
    parser = command_line()
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


def command_line() -> argparse.ArgumentParser:
    """What can be typed."""
    parser = argparse.ArgumentParser(
        prog="slideformer", description="Full-parameter fine-tuning of language models larger than GPU memory."
    )
    parser.add_argument("--version", action="version", version=f"slideformer {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    training.add_commands(commands)
    measuring.add_commands(commands)
    looking.add_commands(commands)
    first_steps.add_commands(commands, parser)
    return parser
