"""Signals: the first ends the run after its step, resumably; the second at once."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model
from tiny_runs import make_records, read_run, train, write_config, write_records

from slideformer.cli import main
from slideformer.engine.engine import Engine
from slideformer.listeners.events import Wishes
from slideformer.run.stop_request import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_is_continued_with_the_command_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
):
    model = save_tiny_model(tmp_path / "model", "llama")
    data = write_records(tmp_path / "data.jsonl", make_records(8))
    settings: dict[str, Any] = {"max_steps": 4, "batch_size": 2, "max_length": 24}
    expected = train(write_config(tmp_path / "a.yaml", model, data, tmp_path / "a", **settings), tmp_path / "a")
    config = write_config(tmp_path / "b.yaml", model, data, tmp_path / "b", **settings)
    step = Engine.train_step

    def signalled(self, batch, hyper, max_norm, **how):
        if hyper.step == 2:
            os.kill(os.getpid(), number)
        return step(self, batch, hyper, max_norm, **how)

    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(Engine, "train_step", signalled)
    capsys.readouterr()
    assert main(["train", str(config), "--logging_steps", "2"]) == 0
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.setattr(Engine, "train_step", step)
    output = capsys.readouterr().out
    assert not (tmp_path / "b/model.safetensors").exists()
    command = re.search(r"stopped after checkpoint-2; to go on:\n  (slideformer train .*)\n", output)
    assert command and "--logging_steps=2" in command[1]
    assert main(shlex.split(command[1])[1:]) == 0
    run = read_run(tmp_path / "b")
    assert run.losses == expected.losses and run.norms == expected.norms
    assert all(value.equal(expected.weights[name]) for name, value in run.weights.items())


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal\n"
        "from slideformer.listeners.events import Wishes\n"
        "from slideformer.run.stop_request import StopRequest\n"
        "wishes = Wishes()\n"
        "with StopRequest(wishes):\n"
        "    os.kill(os.getpid(), signal.SIGINT); print(wishes.stop, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "True\n")
    assert "once more to exit at once" in done.stderr and "SIGTERM again" in done.stderr


def test_in_another_thread_it_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use() -> None:
        wishes = Wishes()
        with StopRequest(wishes):
            seen.append((signal.getsignal(signal.SIGTERM) == before, wishes.stop))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(True, False)]
