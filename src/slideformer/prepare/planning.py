"""A config, a model and the data that was read -> the plan."""

from dataclasses import replace

import torch

from slideformer.data.examples import Examples
from slideformer.data.load import LoadedData
from slideformer.data.packing import extreme_rows
from slideformer.engine.generate import pass_length
from slideformer.engine.measure import Row, measure_work, model_sizes
from slideformer.engine.measure_inference import measure_keys_and_values
from slideformer.errors import ConfigError, DoesNotFit
from slideformer.models.architecture import Decoder
from slideformer.plan.footprint import Answers
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.plan.pace import Pace
from slideformer.plan.pins import Pins
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.rates import MachineRates
from slideformer.prepare.elsewhere import GPU_PROCESS_BYTES, work_there
from slideformer.prepare.prompts import Prompts
from slideformer.prepare.reading import batch_stream
from slideformer.settings.config import Config


def plan_run(
    config: Config,
    decoder: Decoder,
    dtype: torch.dtype,
    machine: Machine,
    disk_budget_bytes: int | None,
    data: LoadedData,
    held_out: Examples | None,
    prompts: Prompts | None,
    kept_size: int | None,
    elsewhere: MachineRates | None = None,
    pace: Pace | None = None,
) -> Plan:
    """The plan of a run over data that has been read.

    Args:
        disk_budget_bytes: what offloaded states may take; None: nothing is offloaded.
        kept_size: the micro-batch size of the run to continue, kept if the config leaves it open and it still fits.
        elsewhere: a machine that is not this one; what computation needs there is then estimated.
        pace: what steps take; None: not known.

    Raises:
        DoesNotFit: with what would fit.
        ConfigError: a sample prompt needs longer passes than `max_length`.
    """
    longest, rows = _rows_to_plan_for(config, data, held_out)
    answers, length = _plan_answers(config, decoder, dtype, prompts, longest)
    workload = Workload(
        config.batch_size,
        length,
        config.max_grad_norm is not None,
        config.micro_batch_size,
        config.window_depth,
        recompute_all=bool(config.gradient_checkpointing),
        optimizer_state=config.optimizer_state,
        resident=config.resident,
        kept=config.kept,
        saves_in_background=config.saves_in_background,
        pins=Pins.named_in(config),
    )
    host = config.budget.host_bytes or machine.host_bytes
    gpu = machine.allocatable_bytes(config.budget.gpu_bytes)
    work = replace(measure_work(decoder, length, dtype, rows), answers=answers)
    process = resident_bytes()
    if elsewhere is not None and elsewhere.has_gpu:
        work, process = work_there(work, decoder, dtype), GPU_PROCESS_BYTES

    def plan_of(workload: Workload) -> Plan:
        return make_plan(model_sizes(decoder), work, workload, dtype, host, gpu, process, disk_budget_bytes, pace)

    if kept_size and not config.micro_batch_size and kept_size <= config.batch_size:
        try:
            return plan_of(replace(workload, micro_batch_size=kept_size))
        except DoesNotFit:
            pass  # a smaller one may; the change is told when the checkpoint is resumed from
    return plan_of(workload)


def _rows_to_plan_for(config: Config, data: LoadedData, held_out: Examples | None) -> tuple[int, list[Row]]:
    """(tokens of the longest row, the documents in the hungriest ones or None)."""
    if config.packing:
        rows = batch_stream(config, data, 0, packing=True).rows(0)
        return config.max_length, [*extreme_rows(rows, data.examples.lengths.numpy(), config.max_length)]
    return max(int(examples.lengths.max()) for examples in (data.examples, held_out) if examples is not None), [None]


def _plan_answers(
    config: Config, decoder: Decoder, dtype: torch.dtype, prompts: Prompts | None, longest: int
) -> tuple[Answers | None, int]:
    """What answering sample prompts needs, and the longest sequence of a pass with them."""
    if prompts is None:
        return None, longest
    cache = measure_keys_and_values(decoder, dtype)
    if cache is None:
        print("sample_prompts: the model keeps no keys and values, so each new token computes its whole prompt again")
    needed = pass_length(prompts.longest, prompts.decoding.max_new_tokens, cached=cache is not None)
    if needed > config.max_length:
        raise ConfigError(
            f"sample_prompts: a pass over {needed} tokens is longer than max_length = {config.max_length}",
            "shorten the prompts or their answers, or raise max_length",
        )
    return Answers(len(prompts.tokens), prompts.longest_sequence, cache), max(longest, needed)
