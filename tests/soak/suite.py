"""A long run of a tiny model that saves every 20 steps and evaluates every 30, watched from outside.

    make soak-test                     # an hour
    SOAK_MINUTES=5 make soak-test

Passes if memory stays flat and neither files nor threads add up (`soak.judge` says how that is decided), and if the
run, ended by SIGTERM, exits with 0. What was seen is left in build/soak: samples, verdicts, the run's output.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from soak.judge import Verdict, judge
from tiny_models import save_tiny_model, save_tiny_tokenizer
from tiny_runs import make_records, write_config, write_records

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
RESULTS = Path(__file__).parents[2] / "build" / "soak"
COUNTED = {"open_files", "threads", "temporary_files"}
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "micro_batch_size": 2, "max_length": 32, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
    "max_steps": 10**8, "save_steps": 20, "save_total_limit": 2, "eval_size": 8, "eval_steps": 30,
    "sample_prompts": ["w3 w4 w5", "w6"], "sample_raw": True, "sample_max_new_tokens": 8, "logging_steps": 1000,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What the run held at one moment.

    Anonymous memory is what no file backs. Unshared memory would not do: it grows when another process that maps the
    same libraries ends.
    """

    seconds: float
    rss_bytes: int
    anonymous_bytes: int
    mappings: int
    open_files: int
    threads: int
    temporary_files: int


def main() -> int:
    RESULTS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="soak-") as directory, (RESULTS / "output.txt").open("w") as output:
        config = prepare(Path(directory))
        temporary = Path(directory) / "tmp"
        run = subprocess.Popen(
            [sys.executable, "-m", "slideformer", "train", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        samples = list(watch(run, temporary, MINUTES * 60))
        code = ended(run)
        steps = len((Path(directory) / "out/metrics.jsonl").read_text().splitlines())
    verdicts = [judged(samples, field.name) for field in fields(Sample)[1:]]
    report(samples, verdicts, steps, code)
    return 0 if code == 0 and all(verdict.flat for verdict in verdicts) else 1


def prepare(directory: Path) -> Path:
    """The model, the records and the configuration of the run."""
    (directory / "tmp").mkdir()
    model = save_tiny_tokenizer(save_tiny_model(directory / "model", "qwen3"))
    data = write_records(directory / "data.jsonl", make_records(200))
    return write_config(directory / "run.yaml", model, data, directory / "out", shuffle=True, **SETTINGS)


def watch(run: subprocess.Popen, temporary: Path, seconds: float) -> Iterator[Sample]:
    """Samples of a running process until the time is up or it ends."""
    process, started = psutil.Process(run.pid), time.monotonic()
    interval = min(5.0, seconds / 40)
    while (passed := time.monotonic() - started) < seconds and run.poll() is None:
        try:
            memory = process.memory_info()
            yield Sample(
                passed, memory.rss, memory.rss - memory.shared, len(process.memory_maps(grouped=False)),
                process.num_fds(), process.num_threads(), sum(1 for _ in temporary.rglob("*")),
            )  # fmt: skip
        except psutil.Error:  # it ended just now: `run.poll` knows
            continue
        time.sleep(interval)


def ended(run: subprocess.Popen) -> int:
    """The exit code, after SIGTERM unless it has ended by itself, which is a failure."""
    if run.poll() is not None:
        return run.returncode or 1
    run.send_signal(signal.SIGTERM)
    try:
        return run.wait(timeout=120)
    except subprocess.TimeoutExpired:
        run.kill()
        return run.wait()


def judged(samples: list[Sample], quantity: str) -> Verdict:
    values = [float(getattr(sample, quantity)) for sample in samples]
    return judge(quantity, [sample.seconds for sample in samples], values, quantity in COUNTED)


def report(samples: list[Sample], verdicts: list[Verdict], steps: int, code: int) -> None:
    found = {
        "minutes": samples[-1].seconds / 60,
        "steps": steps,
        "exit_code": code,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "samples": [asdict(sample) for sample in samples],
    }
    (RESULTS / "result.json").write_text(json.dumps(found) + "\n")
    print(f"{steps:,} steps in {found['minutes']:.1f} minutes, {len(samples)} samples, exit code {code}")
    print("\n".join(map(str, verdicts)))


if __name__ == "__main__":
    sys.exit(main())
