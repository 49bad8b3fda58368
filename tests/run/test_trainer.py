"""A run from the command line: what it writes, when, and that its models load anywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny_model
from tiny_runs import Run, make_records, plain_training, train, write_config, write_records
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from slideformer.cli import main
from slideformer.storage.lock import locked

RECORDS = make_records(10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


def start(directory: Path, model: Path, **settings: Any) -> Run:
    directory.mkdir(exist_ok=True)
    data = write_records(directory / "data.jsonl", RECORDS)
    settings = {"batch_size": 4, "lr_scheduler_type": "constant", "learning_rate": 1e-3, "max_length": 24, **settings}
    return train(write_config(directory / "run.yaml", model, data, directory / "out", **settings), directory / "out")


def logits(directory: Path) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return loaded(input_ids=torch.arange(3, 20)[None]).logits


def test_a_checkpoint_is_saved_every_save_steps_and_the_model_at_the_end(model: Path, tmp_path: Path):
    start(tmp_path / "long", model, max_steps=4, save_steps=2, export_checkpoints=True)
    start(tmp_path / "short", model, max_steps=2)
    saved = sorted(path.name for path in (tmp_path / "long/out").glob("checkpoint-*"))
    assert saved == ["checkpoint-2"]  # step 4 is the run's own result
    halfway, end = logits(tmp_path / "long/out/checkpoint-2/model"), logits(tmp_path / "long/out")
    assert torch.equal(halfway, logits(tmp_path / "short/out")) and not torch.equal(halfway, end)


def test_a_directory_in_use_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    config = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out")
    with locked(tmp_path / "out"):
        assert main(["train", str(config)]) == 1
    assert "is in use by another run" in capsys.readouterr().err


def test_saving_does_not_change_the_training(model: Path, tmp_path: Path):
    assert (
        start(tmp_path / "a", model, max_steps=4, save_steps=1).losses
        == start(tmp_path / "b", model, max_steps=4).losses
    )


def test_every_step_is_recorded_once(model: Path, tmp_path: Path):
    start(tmp_path, model, num_train_epochs=2)
    steps = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]  # 10 records by 4: three steps an epoch
    lengths = [len(record["input_ids"]) for record in RECORDS]
    assert [step["tokens"] for step in steps] == [sum(lengths[:4]), sum(lengths[4:8]), sum(lengths[8:])] * 2
    assert all(
        step["seconds"] > 0 and step["host_peak_bytes"] > 10**8 and step["gpu_peak_bytes"] == 0 for step in steps
    )
    assert all(step["tokens_per_second"] == pytest.approx(step["tokens"] / step["seconds"]) for step in steps)
    assert [step["learning_rate"] for step in steps] == [1e-3] * 6


def test_shuffled_runs_repeat_with_their_seed(model: Path, tmp_path: Path):
    def losses(name: str, seed: int) -> list[float]:
        return start(tmp_path / name, model, max_steps=3, seed=seed, shuffle=True).losses

    one = losses("a", 1)
    assert one == losses("b", 1) and one != losses("c", 2)


def test_without_settings_for_adam_it_is_transformers_defaults(model: Path, tmp_path: Path):
    defaults = {
        "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
        "warmup_steps": 0, "learning_rate": 1e-4, "lr_scheduler_type": "linear", "batch_size": 4, "max_steps": 4,
    }  # fmt: skip
    run = start(tmp_path, model, learning_rate=1e-4, lr_scheduler_type="linear", max_steps=4)
    assert run.losses == pytest.approx(plain_training(model, RECORDS, defaults).losses, rel=1e-5)


def test_bf16_runs_on_the_cpu_and_saves_bf16(model: Path, tmp_path: Path):
    run = start(tmp_path, model, max_steps=6, num_train_epochs=1, compute_dtype="bf16")
    assert {value.dtype for value in run.weights.values()} == {torch.bfloat16}
    reference = start(tmp_path / "fp32", model, max_steps=6)
    assert run.losses == pytest.approx(reference.losses, rel=5e-3)


def test_training_can_start_from_random_weights(model: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model / "config.json").read_text())
    run = start(tmp_path, bare, max_steps=2, init="random")
    assert run.losses[0] == pytest.approx(4.85, abs=0.1)  # log(128)
    assert logits(tmp_path / "out").isfinite().all()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_export_writes_the_same_model_in_another_dtype(model: Path, tmp_path: Path, name: str, dtype: torch.dtype):
    start(tmp_path, model, max_steps=1)
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "exported"), "--dtype", name]) == 0
    source, target = (load_file(tmp_path / which / "model.safetensors") for which in ("out", "exported"))
    assert source.keys() == target.keys()
    assert all(torch.equal(target[key], source[key].to(dtype)) for key in source)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported").dtype == dtype


def test_the_parity_check_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start(tmp_path, model, max_steps=1, parity_check=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("parity: ")]
    assert len(lines) == 1 and "Qwen3ForCausalLM trains as in plain PyTorch" in lines[0]


def test_the_plan_is_shown_and_allocates_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    config = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out", batch_size=4)
    assert main(["plan", str(config)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("plan: 0.000") and "weights and optimizer state" in output
    assert main(["plan", str(config), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["sizes"]["micro_batch_size"] == 4 and values["host_bytes"]["weights and optimizer state"] > 12 * 10**5
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    config = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out", device="cuda")
    assert main(["train", str(config)]) == 1
    assert capsys.readouterr().err == (
        "error: device: cuda, but PyTorch sees no GPU\nhint: check the driver, or set device: cpu\n"
    )


def test_the_run_s_chat_template_is_saved_with_the_model(model: Path, tmp_path: Path):
    words = ["[UNK]", "hello", "there", "user", "assistant"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # the stubs lack the setter's type
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="the tokenizer's own")
    with_tokenizer = tmp_path / "model"
    shutil.copytree(model, with_tokenizer)
    tokenizer.save_pretrained(with_tokenizer)
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    config = tmp_path / "run.yaml"
    write_config(config, with_tokenizer, tmp_path / "chat.jsonl", tmp_path / "out", max_steps=1, batch_size=1)
    assert main(["train", str(config), "--data.chat_template", str(template), "--data.train_on=everything"]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.read_text()


def test_weighted_sources_decide_the_steps_of_an_epoch(model: Path, tmp_path: Path):
    data = [write_records(tmp_path / f"{i}.jsonl", RECORDS) for i in range(2)]
    sources = [{"path": str(data[0]), "weight": 2}, {"path": str(data[1]), "weight": 0.5}]
    config = tmp_path / "run.yaml"
    write_config(config, model, data[0], tmp_path / "out", batch_size=5)
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "data": {"sources": sources, "cache_dir": str(tmp_path / "cache")}}))
    assert len(train(config, tmp_path / "out").losses) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 1  # both sources hold the same


def test_the_data_is_shown_without_a_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_records(tmp_path / "data.jsonl", RECORDS)
    config = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out")
    assert main(["data", str(config), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert " ".join(map(str, RECORDS[0]["input_ids"][:4])) in shown and "lengths in tokens" in shown
    assert not (tmp_path / "out").exists()


def test_the_run_says_what_is_trained_where_something_is_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    start(tmp_path, model, max_steps=1)
    assert "trained:" not in capsys.readouterr().out
    start(tmp_path, model, max_steps=1, trainable=[r"layers\.2\."], frozen=["norm"])
    record = json.loads((tmp_path / "out/run.json").read_text())["model"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained: ")]
    assert line.startswith(f"trained: {record['trained_parameters']:,} parameters in 7 tensors; not trained: ")
    assert line.endswith(r"frozen (trainable: layers\.2\.; frozen: norm)")
