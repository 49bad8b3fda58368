"""Training runs in processes of their own, killed at a chosen moment.

A fork server that has imported everything makes each process in milliseconds; it is the program's own `main` that runs
there, and SIGKILL is a real one.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slideformer.cli import main
from slideformer.engine import compute, snapshot
from slideformer.listeners.run_directory import RecordLog
from slideformer.memory.host import LayerState
from slideformer.models import stream_out
from slideformer.optim.adamw import LayerAdam
from slideformer.prepare import job
from slideformer.run import saving
from slideformer.storage import checkpoint, tensor_file
from slideformer.storage.disk import DiskFile

DEADLINE_SECONDS = 120
PRELOADED = ["slideformer.run.trainer", "slideformer.cli", "transformers.models.qwen3.modeling_qwen3", "torch._dynamo"]
SMALL_CHUNK_BYTES = 4096  # several a file, also of a tiny model
# Name -> (object, function): the moments before and after each call of it.
CALLS: dict[str, tuple[Any, str]] = {
    "load": (LayerState, "load"),
    "forward": (compute, "block_recorded"),
    "backward": (compute, "block_backward"),
    "update": (LayerAdam, "step_spans"),
    "record": (RecordLog, "write"),
    "copy a unit": (snapshot, "StateCopy"),
    "read from the disk tier": (DiskFile, "_read"),
    "write to the disk tier": (DiskFile, "_write"),
    "save a unit": (checkpoint, "write_tensors"),
    "save the manifest": (checkpoint, "write_manifest"),
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "remove": (checkpoint, "remove_hidden"),
    "remove the oldest": (saving, "keep_newest"),
    "restore a unit": (checkpoint, "read_tensors"),
    "export": (stream_out, "_write_tensor"),
    "replace": (os, "replace"),
}
MOMENTS = [*CALLS, "within a file"]
DISK_MOMENTS = ["read from the disk tier", "write to the disk tier"]
FIRST_RUN = [name for name in MOMENTS if name != "restore a unit"]


@dataclass(frozen=True)
class Kill:
    """Before or after the `number`-th call (from 0) of what `moment` names."""

    moment: str
    number: int
    after: bool


def start(
    words: list[str],
    log: Path,
    kill: Kill | None = None,
    counts: Path | None = None,
    sizes: dict[str, int] | None = None,
) -> BaseProcess:
    """Run the command line in a new process; `counts` gets how often each moment came.

    Args:
        sizes: of the plan's, those that are to be others, as if budgets had led to them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(words, log, kill, counts, sizes or {}))
    process.start()
    return process


def finished(process: BaseProcess) -> int:
    """The exit code; a process that hangs is an error."""
    process.join(DEADLINE_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"no end after {DEADLINE_SECONDS} s")
    return process.exitcode


def killed_after(process: BaseProcess, seconds: float) -> int:
    """Kill at whatever instruction it is then; the exit code."""
    time.sleep(seconds)
    process.kill()
    return finished(process)


def _run(words: list[str], log: Path, kill: Kill | None, counts: Path | None, sizes: dict[str, int]) -> None:
    os.sched_setaffinity(0, {random.choice(list(os.sched_getaffinity(0)))})  # one thread is fastest for tiny models
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a kill leaves what was said
    plan_run = job.plan_run

    def other_plan(*args: Any, **kwargs: Any) -> Any:
        plan = plan_run(*args, **kwargs)
        return replace(plan, sizes=replace(plan.sizes, **sizes))

    job.plan_run = other_plan
    counters = {name: count() for name in MOMENTS}

    def reached(name: str, number: int, after: bool) -> None:
        if kill == Kill(name, number, after):
            os.kill(os.getpid(), signal.SIGKILL)

    for name, (owner, function) in CALLS.items():
        setattr(owner, function, _around(getattr(owner, function), name, counters[name], reached))
    _within_files(counters["within a file"], reached)
    code = main(words)
    if counts is not None:
        counts.write_text(json.dumps({name: next(counter) for name, counter in counters.items()}))
    os._exit(code)


Reached = Callable[[str, int, bool], None]


def _around(function: Callable[..., Any], name: str, counter: Iterator[int], reached: Reached) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        number = next(counter)
        reached(name, number, False)
        result = function(*args, **kwargs)
        reached(name, number, True)
        return result

    return wrapped


def _within_files(counter: Iterator[int], reached: Reached) -> None:
    """Between two pieces that are written to, or read from, a checkpoint's file."""
    tensor_file.CHUNK_BYTES = SMALL_CHUNK_BYTES
    chunks = tensor_file._chunks

    def counted(tensor: Tensor) -> Iterator[memoryview]:
        for piece in chunks(tensor):
            number = next(counter)
            reached("within a file", number, False)
            yield piece
            reached("within a file", number, True)

    tensor_file._chunks = counted
