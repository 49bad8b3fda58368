"""`slideformer generate`: a saved model answers, and nothing but answers goes to standard output."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model, save_tiny_tokenizer
from tiny_runs import make_records, write_config, write_records
from transformers import AutoModelForCausalLM, AutoTokenizer

from slideformer.cli import main

TEMPLATE = "{% for m in messages %}w10 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w11{% endif %}"
NEW_TOKENS = ["--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(save_tiny_model(tmp_path_factory.mktemp("model"), "llama"), TEMPLATE)


def by_transformers(model: Path, text: str) -> str:
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    output = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_one_prompt_in_the_chat_template(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", str(model), "--prompt", "w5 w6", *NEW_TOKENS]) == 0
    captured = capsys.readouterr()
    assert captured.out == by_transformers(model, "w10 w5 w6 w11") + "\n"
    assert captured.err.startswith("plan: 1 prompt at once, all blocks stay")


def test_prompts_of_a_file_taken_as_they_are(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "prompts.jsonl").write_text('"w5 w6"\n{"prompt": "w7"}\n')
    assert main(["generate", str(model), "--prompts", str(tmp_path / "prompts.jsonl"), "--raw", *NEW_TOKENS]) == 0
    expected = [f"prompt: {text}\nanswer: {by_transformers(model, text)}\n\n" for text in ("w5 w6", "w7")]
    assert capsys.readouterr().out == "".join(expected)


def test_drawn_answers_repeat_with_their_seed(model: Path, capsys: pytest.CaptureFixture[str]):
    def answer(seed: int) -> str:
        words = ["--temperature", "1.5", "--top_p", "0.95", "--top_k", "50", "--seed", str(seed)]
        assert main(["generate", str(model), "--prompt", "w5", *NEW_TOKENS, *words]) == 0
        return capsys.readouterr().out

    assert answer(1) == answer(1) != answer(2)


def test_the_result_of_a_run_is_named_by_its_config(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_records(tmp_path / "data.jsonl", make_records(4))
    config = write_config(tmp_path / "run.yaml", model, data, tmp_path / "out", max_steps=1)
    assert main(["generate", str(config), "--prompt", "w5"]) == 1
    assert f"{tmp_path / 'out'} holds no trained model yet" in capsys.readouterr().err
    shutil.copytree(model, tmp_path / "out")
    assert main(["generate", str(config), "--prompt", "w5 w6", *NEW_TOKENS]) == 0
    assert capsys.readouterr().out == by_transformers(model, "w10 w5 w6 w11") + "\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "there is no prompt"),
        (["--prompt", "w5", "--top_p", "0.9"], "nothing is drawn at temperature 0"),
        (["--prompt", "w5", "--max_new_tokens", "500"], "more than the 128 positions of the model"),
        (["--prompt", "w5", "--tempreature", "1"], "'--tempreature' is not known"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    model: Path, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["generate", str(model), *words]) == 1
    assert error in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bare = save_tiny_model(tmp_path / "bare", "llama")
    assert main(["generate", str(bare), "--prompt", "w5"]) == 1
    assert "has no tokenizer, so prompts cannot be read" in capsys.readouterr().err
