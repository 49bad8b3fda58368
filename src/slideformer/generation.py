"""`slideformer generate`: a saved model, or the result of a run, answers prompts through the window."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideformer.data.prompts import read_prompts, stop_ids
from slideformer.engine.device import device_and_dtype
from slideformer.engine.generate import pass_length
from slideformer.engine.inference import InferenceEngine
from slideformer.engine.measure import model_sizes
from slideformer.engine.measure_inference import measure_inference
from slideformer.engine.sampling import Decoding
from slideformer.errors import ConfigError
from slideformer.kernels.liger import apply_liger, choose_kernels
from slideformer.models.architecture import Decoder
from slideformer.models.hub import CONFIG_FILE, read_config, resolve
from slideformer.models.meta import build_on_meta
from slideformer.models.stream_in import stream_in
from slideformer.plan.inference import InferencePlan, plan_inference
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.prepare.prompts import Prompts, make_prompts
from slideformer.prepare.reading import tokenizer_of
from slideformer.settings.config import load_config


@dataclass(frozen=True)
class Request:
    """What `generate` is asked to do.

    Attributes:
        model: a model directory, a hub id, or the config file of a run, whose result answers.
        prompts: texts, or a file of them.
        raw: without the chat template.
        gpu_budget_bytes: GPU memory it may use; None: what is free.
    """

    model: str
    prompts: list[str] | Path
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 42
    raw: bool = False
    device: str = "auto"
    compute_dtype: str = "auto"
    gpu_budget_bytes: int | None = None
    trust_remote_code: bool = False


def generate(request: Request) -> list[str]:
    """Answer the prompts and print the answers; one prompt's answer appears as it is written, in a terminal.

    What is not an answer goes to standard error.

    Raises:
        ConfigError, UnsupportedModel, WeightsError: the model cannot be used.
        DoesNotFit: there is not memory enough; says what would be.
    """
    trust = request.trust_remote_code
    path = model_directory(request.model, trust)
    model_config, tokenizer = read_config(path, trust), tokenizer_of(path, trust)
    stop = stop_ids(path, model_config, tokenizer)
    decoding = Decoding(
        request.max_new_tokens, stop, request.temperature, request.top_k, request.top_p, request.seed
    )  # fmt: skip
    prompts = make_prompts(read_prompts(request.prompts), tokenizer, path, model_config, decoding, request.raw)
    device, dtype = device_and_dtype(request.device, request.compute_dtype)
    customize = apply_liger if choose_kernels("auto", device.type) == "liger" else None
    decoder = Decoder(model_config, device, None, customize, trust)
    plan = _plan(decoder, prompts, dtype, request.gpu_budget_bytes)
    _note(str(plan))
    with InferenceEngine(decoder, plan.sizes, dtype) as engine:
        _load(engine, path, model_config, trust)
        return _answer(engine, prompts)


def model_directory(model: str, trust_remote_code: bool = False) -> Path:
    """The directory of a model; for the config file of a run, that of its result."""
    if Path(model).suffix not in (".yaml", ".yml"):
        return resolve(model, trust_remote_code)
    output_dir = load_config(model).output_dir
    if not (output_dir / CONFIG_FILE).is_file():
        raise ConfigError(f"{output_dir} holds no trained model yet", f"slideformer train {model}")
    return output_dir


def _plan(decoder: Decoder, prompts: Prompts, dtype: Any, gpu_budget_bytes: int | None) -> InferencePlan:
    machine = Machine.measure(decoder.device)
    # Without a cache passes grow to the whole sequence: that much is measured where it may be needed.
    work = measure_inference(decoder, prompts.longest, dtype)
    length = pass_length(prompts.longest, prompts.decoding.max_new_tokens, cached=work.cache is not None)
    if work.cache is None:
        _note("the model keeps no keys and values, so each new token computes its whole prompt again")
        work = measure_inference(decoder, length, dtype)
    return plan_inference(
        model_sizes(decoder),
        work,
        prompts=len(prompts.tokens),
        pass_length=length,
        tokens=prompts.longest_sequence,
        dtype=dtype,
        host_budget_bytes=machine.host_bytes,
        device_budget_bytes=machine.allocatable_bytes(gpu_budget_bytes),
        process_bytes=resident_bytes(),
    )


def _load(engine: InferenceEngine, path: Path, model_config: Any, trust_remote_code: bool) -> None:
    started = time.perf_counter()
    model = build_on_meta(model_config, None, trust_remote_code)
    engine.load(stream_in(path, model, engine.parameter_groups()))
    _note(f"loaded {path} in {time.perf_counter() - started:.1f} s")


def _answer(engine: InferenceEngine, prompts: Prompts) -> list[str]:
    if len(prompts.texts) == 1 and sys.stdout.isatty():
        answers = prompts.answers(engine, _writer())
        print()
        return answers
    answers = prompts.answers(engine)
    for text, answer in zip(prompts.texts, answers, strict=True):
        print(answer if len(answers) == 1 else f"prompt: {text}\nanswer: {answer}\n")
    return answers


def _writer() -> Callable[[str], None]:
    """Prints a text that grows; a character that is not whole yet (its bytes are still coming) waits."""
    written = ""

    def write(text: str) -> None:
        nonlocal written
        if text.startswith(written) and not text.endswith("\ufffd"):
            print(text[len(written) :], end="", flush=True)
            written = text

    return write


def _note(line: str) -> None:
    print(line, file=sys.stderr)
