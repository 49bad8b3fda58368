"""What watching a run costs: steps alone beside steps with lanes measured, records, the panel and callbacks.

    python benchmarks/monitoring.py --shape qwen3-4b --sequences 8 --gpu-budget 8GiB
    python benchmarks/monitoring.py --shape tiny --sequences 4 --length 256      # on a CPU

Both kinds alternate in blocks of the same run, in an order drawn from a seed. The share of a step is told twice: as the
difference of the medians, which includes what is not caused by watching, and as the time the training thread spent in
telling and another thread in drawing, which is what can hold a step up.
"""

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from shapes import SHAPES
from transformers import LlamaConfig, TrainerCallback

from slideformer.data.batches import Batch
from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.random_weights import random_weights
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.lanes.lanes import Lanes, lanes_for
from slideformer.lanes.measured import MeasuredLane, measured, take_spans
from slideformer.listeners.events import Listener, Listeners, Wishes
from slideformer.listeners.metrics import RunRecord
from slideformer.listeners.panel import LivePanel
from slideformer.listeners.run_directory import RunDirectory
from slideformer.listeners.trackers import tracker_callbacks
from slideformer.listeners.transformers_callbacks import HuggingFaceListener
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.run.recorder import Recorder
from slideformer.units import parse_bytes

SHAPES["tiny"] = lambda: LlamaConfig(
    hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4, vocab_size=8192
)  # fmt: skip


def main() -> None:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = SHAPES[arguments.shape]()
    decoder = Decoder(
        config, device, "sdpa", apply_liger if choose_kernels("auto", device.type) == "liger" else None
    )  # fmt: skip
    plan = _plan(decoder, dtype, arguments)
    lanes = measured(lanes_for(device))
    with tempfile.TemporaryDirectory() as directory, Engine(decoder, plan.sizes, dtype, lanes) as engine:
        engine.load(random_weights(engine, config, 0))
        told, panel = _listeners(Path(directory), config, plan, (arguments.blocks + 1) * arguments.steps)
        watched = Watched(engine, told)
        seconds = _alternate(engine, watched, lanes, config.vocab_size, arguments)
        drawing, marks = _drawing_seconds(panel), _mark_seconds(lanes)
        told.ended()
    alone, watching = (statistics.median(seconds[kind]) for kind in (False, True))
    print(f"{arguments.shape}, {arguments.sequences} x {arguments.length}, {device}, torch {torch.__version__}")
    print(f"a step alone          {alone * 1e3:9.2f} ms   (median of {len(seconds[False])} blocks)")
    print(f"a step watched        {watching * 1e3:9.2f} ms   {watching / alone - 1:+.2%}")
    print(f"telling, on its own   {watched.telling_seconds * 1e3:9.3f} ms   {watched.telling_seconds / alone:.2%}")
    print(f"drawing the panel     {drawing * 1e3:9.3f} ms   {drawing:.2%}, once a second, in another thread")
    print(f"a mark on a lane      {marks * 1e6:9.2f} us   of the host, two for each submission")


class Watched:
    """Steps that are recorded and told, and how long telling took."""

    def __init__(self, engine: Engine, listener: Listener):
        self._engine = engine
        self._recorder = Recorder(engine, self._timed(listener), steps_per_epoch=100)
        self._telling: list[float] = []

    @property
    def telling_seconds(self) -> float:
        """A step, in the median."""
        return statistics.median(self._telling)

    def step(self, batch: Batch, hyper: AdamWStep) -> None:
        self._recorder.add(hyper.step, hyper, batch, self._engine.train_step(batch, hyper, 1.0))

    def begin(self) -> None:
        self._recorder.resume()

    def finish(self) -> None:
        self._recorder.finish()

    def _timed(self, listener: Listener) -> Listener:
        told = listener.stepped

        def stepped(stats) -> None:
            started = time.perf_counter()
            told(stats)
            self._telling.append(time.perf_counter() - started)

        listener.stepped = stepped
        return listener


class Bare:
    """Steps whose loss and norm are read a step late, as anyone would."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._last = None

    def step(self, batch: Batch, hyper: AdamWStep) -> None:
        if self._last is not None:
            _ = self._last.loss, self._last.grad_norm
        self._last = self._engine.train_step(batch, hyper, 1.0)

    def begin(self) -> None:
        self._last = None

    def finish(self) -> None:
        self._engine.drain()


def _alternate(
    engine: Engine, watched: Watched, lanes: Lanes, vocabulary: int, arguments: argparse.Namespace
) -> dict[bool, list[float]]:
    """Mean seconds of a step, block by block, by whether it was watched."""
    bare, step = Bare(engine), 0
    seconds: dict[bool, list[float]] = {False: [], True: []}
    draw = random.Random(0)
    for block in range(arguments.blocks + 1):
        for is_watched in draw.sample([False, True], 2):
            kind = watched if is_watched else bare
            _measure_lanes(lanes, is_watched)
            kind.begin()
            started = time.perf_counter()
            for _ in range(arguments.steps):
                step += 1
                kind.step(_batch(step, vocabulary, arguments), AdamWStep(1e-5, 0.9, 0.999, 1e-8, 0.0, step))
            kind.finish()
            if block:  # the first warms up
                seconds[is_watched].append((time.perf_counter() - started) / arguments.steps)
    return seconds


def _measure_lanes(lanes: Lanes, on: bool) -> None:
    """Let measured lanes run their work with or without marks."""
    take_spans(lanes)
    for lane in (lanes.compute, lanes.h2d, lanes.d2h):
        assert isinstance(lane, MeasuredLane)
        run: Callable = MeasuredLane.run.__get__(lane) if on else lane._lane.run
        lane.run = run


def _listeners(directory: Path, config, plan: Plan, steps: int) -> tuple[Listeners, LivePanel]:
    """All that a run in a terminal with a tracker tells."""
    model = {"architecture": config.model_type, "parameters": plan.model.parameters}
    run = RunRecord("", _settings(directory), {}, {"device_bytes": None}, plan.as_json(), {}, model, steps=2 * steps)
    callbacks: list = [*tracker_callbacks(["tensorboard"]), TrainerCallback()]
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    panel = LivePanel(console)
    told = Listeners(RunDirectory(directory, None), panel, HuggingFaceListener(callbacks, Wishes()))
    told.began(run, 0)
    return told, panel


def _drawing_seconds(panel: LivePanel) -> float:
    assert panel._live
    started = time.perf_counter()
    for _ in range(50):
        panel._live.refresh()
    return (time.perf_counter() - started) / 50


def _mark_seconds(lanes: Lanes) -> float:
    """Half of what measuring adds to a submission that does nothing."""
    seconds = {}
    for on in (True, False):
        _measure_lanes(lanes, on)
        started = time.perf_counter()
        for _ in range(5000):
            lanes.compute.run(int)
        seconds[on] = (time.perf_counter() - started) / 5000
    return (seconds[True] - seconds[False]) / 2


def _settings(directory: Path) -> dict:
    return {
        "output_dir": str(directory), "learning_rate": 1e-5, "weight_decay": 0.0, "adam_beta1": 0.9,
        "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "linear", "warmup_steps": 0, "max_steps": -1,
        "num_train_epochs": 1000, "logging_steps": 1, "save_total_limit": None, "seed": 0, "run_name": None,
        "max_grad_norm": 1.0, "save_steps": None,
    }  # fmt: skip


def _plan(decoder: Decoder, dtype: torch.dtype, arguments: argparse.Namespace) -> Plan:
    machine = Machine.measure(decoder.device)
    gpu = machine.allocatable_bytes(parse_bytes(arguments.gpu_budget) if arguments.gpu_budget else None)
    work, workload = (
        measure_work(decoder, arguments.length, dtype),
        Workload(arguments.sequences, arguments.length, True),
    )
    return make_plan(model_sizes(decoder), work, workload, dtype, machine.host_bytes, gpu, resident_bytes())


def _batch(step: int, vocabulary: int, arguments: argparse.Namespace) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch.from_tensors(
        torch.randint(0, vocabulary, (arguments.sequences, arguments.length), generator=generator)
    )  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=8, help="of each kind, after one that warms up")
    parser.add_argument("--steps", type=int, default=4, help="of a block")
    parser.add_argument("--gpu-budget")
    return parser.parse_args()


if __name__ == "__main__":
    main()
