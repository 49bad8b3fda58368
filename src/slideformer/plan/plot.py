"""A picture of one step: the memory of each tier, and what runs on each lane, over the same seconds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideformer.errors import ConfigError
from slideformer.plan.timing import StepTiming
from slideformer.plan.timing_table import LANE_NAMES, format_step
from slideformer.units import GIB, MIB

if TYPE_CHECKING:
    from slideformer.plan.plan import Plan

COLOURS = {
    "forward": "#9ecae1", "backward": "#3182bd", "head": "#fdae6b", "fetch": "#a1d99b", "inputs": "#a1d99b",
    "load": "#e6550d", "save": "#e6550d", "send": "#74c476", "update": "#bcbddc",
    "read": "#c7b299", "write": "#8c6d31",
}  # fmt: skip
PARTS = ("#4e79a7", "#a0cbe8", "#f28e2b", "#ffbe7d", "#59a14f", "#8cd17d", "#b6992d", "#f1ce63", "#79706e", "#bab0ac")
KINDS = (".png", ".svg")
KEPT = "kept for backward"

Areas = dict[str, list[float]]


def write_picture(plan: "Plan", path: Path) -> None:
    """Draw the plan as PNG or SVG.

    Raises:
        ConfigError: matplotlib is not installed, the machine's rates are not known, or `path` is another kind of file.
    """
    if path.suffix not in KINDS:
        raise ConfigError(f"--plot {path}: not a picture's name", hint="end it with .png or .svg")
    if plan.timing is None:
        raise ConfigError("--plot: the machine's rates are not known", hint="run `slideformer probe` first")
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("--plot needs matplotlib", hint="pip install 'slideformer[plot]'") from None
    matplotlib.use("Agg")
    draw(plan, plan.timing).savefig(path, dpi=150)


def draw(plan: "Plan", timing: StepTiming) -> Any:
    """The figure of matplotlib."""
    from matplotlib.figure import Figure

    tiers = [("host", *host_memory(plan, timing))]
    if plan.device_budget_bytes is not None:
        tiers.insert(0, ("GPU", *device_memory(plan, timing)))
    figure = Figure(figsize=(11, 2.6 * len(tiers) + 2.6), layout="constrained")
    axes = figure.subplots(len(tiers) + 1, 1, sharex=True)
    for axis, (tier, times, areas) in zip(axes, tiers, strict=False):
        _draw_memory(axis, tier, times, areas)
    _draw_lanes(axes[-1], timing)
    billions, tokens = plan.model.parameters / 1e9, timing.tokens
    figure.suptitle(
        f"One step of {billions:.3g}B parameters, {tokens:,.0f} tokens, on {timing.machine}: "
        f"{format_step(timing.seconds)} s, predicted"
    )
    return figure


def device_memory(plan: "Plan", timing: StepTiming) -> tuple[list[float], Areas]:
    """(seconds, bytes from each of them on by name) of the GPU: what is allocated in the phase that computes then."""
    n, kept = len(plan.model.blocks), sum(plan.sizes.kept_of(len(plan.model.blocks)))
    backward, head = plan.device["backward"], plan.device["head and loss"]
    always = {name: size for name, size in backward.items() if name in head and name != "row gradients"}
    times, phases = [], []
    for span in (span for span in timing.schedule.spans if span.lane == "compute"):
        what, _, number = span.what.partition(" ")
        parts = {"forward": always, "head": head, "backward": backward}[what]
        held = min(1.0, max(0, int(number) + 1 - (n - kept)) / kept) if number and kept else float(not number)
        times.append(span.start)
        phases.append({**parts, KEPT: parts.get(KEPT, 0) * held})
    return _areas(times, phases, timing)


def host_memory(plan: "Plan", timing: StepTiming) -> tuple[list[float], Areas]:
    """The same of the host, where all is taken before the first step."""
    return _areas([0.0], [plan.host], timing)


def _areas(times: list[float], phases: list[dict[str, Any]], timing: StepTiming) -> tuple[list[float], Areas]:
    names = dict.fromkeys(name for phase in phases for name, size in phase.items() if size)
    areas = {name: [float(phase.get(name, 0)) for phase in [*phases, phases[-1]]] for name in names}
    return [0.0, *times[1:], timing.seconds], areas


def _draw_memory(axis: Any, tier: str, times: list[float], areas: Areas) -> None:
    peak = max(map(sum, zip(*areas.values(), strict=True)))
    unit, name = (GIB, "GiB") if peak >= GIB else (MIB, "MiB")
    steady_first = sorted(areas, key=lambda part: (-min(areas[part]), -max(areas[part])))
    heights = [[size / unit for size in areas[part]] for part in steady_first]
    axis.stackplot(times, heights, labels=steady_first, colors=PARTS, step="post")
    axis.set_ylabel(f"{tier} memory, {name}")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False, reverse=True)
    _tidy(axis)


def _draw_lanes(axis: Any, timing: StepTiming) -> None:
    lanes = list(reversed(timing.lanes))
    for row, lane in enumerate(lanes):
        spans = [span for span in timing.schedule.spans if span.lane == lane]
        axis.broken_barh(
            [(span.start, span.stop - span.start) for span in spans], (row - 0.35, 0.7),
            facecolors=[COLOURS[span.what.split()[0]] for span in spans], edgecolors="white", linewidth=0.3,
        )  # fmt: skip
    labels = {"forward": "forward", "backward": "backward", "head": "head and loss", "fetch": "weights",
              "send": "gradients", "load": "activations", "update": "updates"}  # fmt: skip
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[kind], label=label) for kind, label in labels.items()]
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    axis.set_yticks(range(len(lanes)), [LANE_NAMES[lane] for lane in lanes])
    axis.set_xlim(0, timing.seconds)
    axis.set_xlabel("seconds; at the beginning AdamW still serves the step before")
    _tidy(axis)


def _tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0)
