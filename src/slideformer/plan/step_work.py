"""Seconds of each piece of a step, alone on its lane: what a schedule is made of."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepWork:
    """Seconds of each piece of a step, alone on its lane. Lists have an entry for each block.

    Attributes:
        forward, backward: of all micro-batches; backward with its recomputation.
        head: loss and its gradient.
        call_forward, call_backward: what calling their operators takes the host.
        fetch, fetch_head, fetch_inputs: weights, and what a step begins with, to the GPU.
        send, send_head: gradients from the GPU.
        save, load: boundary activations to host memory and back, 0 where they stay.
        save_outputs, load_outputs: the same of expensive outputs; the last ones need not come back.
        update, update_head, update_table, update_rows: AdamW on the CPU, 0 where there is none; a table's rows without
            a gradient from the embedding are updated early. A tied head is the table, and has no update of its own.
        read, write: records of what is on disk before and after their update, 0 of the others.
        read_weights: weights from the disk before they go to the GPU, 0 of those in host memory.
        write_boundary, read_boundary: boundary activations from host memory to disk and back, 0 where they stay.
        micro_batches: parts of each block's forward and backward; what they save leaves one by one.
        resident: blocks (the first ones) that need no place in the window.
        buffers: records that are in memory at once.
        weight_buffers, boundary_buffers: blocks whose weights, or boundaries, may be in memory between disk and GPU.
        depth: blocks in the window.
        slots: gradients that may wait for their update.
        clipping: no update before the last gradient has landed.
    """

    forward: list[float]
    backward: list[float]
    head: float
    call_forward: list[float]
    call_backward: list[float]
    fetch: list[float]
    fetch_head: float
    fetch_inputs: float
    send: list[float]
    send_head: float
    save: list[float]
    load: list[float]
    save_outputs: list[float]
    load_outputs: list[float]
    update: list[float]
    update_head: float
    update_table: float
    update_rows: float
    read: list[float]
    write: list[float]
    read_weights: list[float]
    write_boundary: list[float]
    read_boundary: list[float]
    micro_batches: int
    resident: int
    buffers: int
    weight_buffers: int
    boundary_buffers: int
    depth: int
    slots: int
    clipping: bool
    tied: bool

    def busy_seconds(self) -> dict[str, float]:
        """What each lane has to do in a step."""
        r, again = self.resident, len(self.forward) - self.depth  # the last blocks are still there in backward
        return {
            "calls": sum(self.call_forward) + sum(self.call_backward),
            "compute": sum(self.forward) + sum(self.backward) + self.head,
            "h2d": sum(self.fetch[r:]) + sum(self.fetch[r : max(r, again)]) + self.fetch_head + self.fetch_inputs
            + sum(self.load) + sum(self.load_outputs),
            "d2h": sum(self.send[r:]) + self.send_head + sum(self.save) + sum(self.save_outputs),
            "adamw": sum(self.update[r:]) + self.update_head + self.update_table + self.update_rows,
            "disk": sum(self.read) + sum(self.write) + sum(self.write_boundary) + sum(self.read_boundary)
            + sum(self.read_weights[r:]) + sum(self.read_weights[r : max(r, again)]),
        }  # fmt: skip


def scaled(work: StepWork, factors: Mapping[str, float]) -> StepWork:
    """The same work on a machine whose lanes take so much longer (2.0) or shorter (0.5); lanes left out stay."""
    lane_of = {
        "calls": ("call_forward", "call_backward"),
        "compute": ("forward", "backward", "head"),
        "h2d": ("fetch", "fetch_head", "fetch_inputs", "load", "load_outputs"),
        "d2h": ("send", "send_head", "save", "save_outputs"),
        "adamw": ("update", "update_head", "update_table", "update_rows"),
        "disk": ("read", "write", "read_weights", "write_boundary", "read_boundary"),
    }  # fmt: skip
    values = dict(vars(work))
    for lane, factor in factors.items():
        for name in lane_of[lane]:
            value = values[name]
            values[name] = [v * factor for v in value] if isinstance(value, list) else value * factor
    return StepWork(**values)
