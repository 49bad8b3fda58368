"""The demo's parts: pairs from a standard library, the model's absence, the sparkline, and a run on a tiny model."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import save_tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from slideformer.demo import assets, main, pairs
from slideformer.errors import ConfigError

MODULE = '''
def shout(text):
    """Return text in capitals."""
    result = text.upper()
    return result + "!"

def _private(text):
    """Not for others."""
    result = text
    return result

def undocumented(text):
    result = text
    return result

def only_documented():
    """There is no body to learn."""

def endless(text):
    """Long."""
    x = "%s"
    return x

class Quiet:
    def method(self):
        """Not a function of the module."""
        x = 1
        return x
''' % ("x" * pairs.MAX_CHARACTERS)


def test_pairs_are_short_documented_public_functions(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(MODULE)
    (tmp_path / "a.py").write_text('def f(a):\n    """Add\n\n    two."""\n    b = 2\n    return a + b  # done\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text(MODULE)
    first, second = pairs.find_pairs(tmp_path)
    assert first.name == "a.py:f" and second.name == "b.py:shout"
    assert first.request == "Write a Python function `f(a)`.\n\nAdd\n\ntwo."
    assert first.answer == "```python\ndef f(a):\n    b = 2\n    return a + b  # done\n```"
    assert '"""' not in second.answer


def test_pairs_of_this_python(tmp_path: Path) -> None:
    count = pairs.write_pairs(tmp_path / "one.jsonl")
    records = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert count == len(records) >= 100
    for record in records:
        user, assistant = record["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        code = assistant["content"].removeprefix("```python\n").removesuffix("\n```")
        function = ast.parse(code).body[0]
        assert isinstance(function, ast.FunctionDef) and ast.get_docstring(function) is None
        assert user["content"] != main.PROMPT and function.name != "count_vowels"


def test_a_missing_model_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="not installed") as caught:
        assets.make_model(tmp_path / "model")
    assert "pip install" in caught.value.hint and not (tmp_path / "model").exists()


def test_an_interrupted_conversion_is_not_taken_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    gguf = tmp_path / "m.gguf"
    monkeypatch.setattr(assets, "_find_gguf", lambda: gguf)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.make_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("values", "bars"), [([1.0, 2.0, 3.0], "▁▄█"), ([2.0, 2.0], "▁▁"), ([float(k) for k in range(80)], 40)]
)
def test_sparkline(values: list[float], bars: str | int) -> None:
    line = main.sparkline(values)
    assert len(line) == bars if isinstance(bars, int) else line.replace("▅", "▄") == bars


def save_tiny_chat_model(directory: Path) -> Path:
    """A random model over a few words with a chat template."""
    save_tiny_model(directory, "llama", vocab_size=16, max_position_embeddings=1024)
    words = ["<pad>", "<s>", "</s>", "<unk>", "def", "return", "python", "(", ")", ":", "`", "=", ".", "a", "b", "x"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    fast.save_pretrained(directory)
    return directory


def test_an_answer_is_the_new_text_only(tmp_path: Path) -> None:
    words = main.answer(save_tiny_chat_model(tmp_path), "def x").split()
    assert 0 < len(words) <= main.NEW_TOKENS and words[:2] != ["def", "x"]


def test_runs_end_to_end_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "make_model", save_tiny_chat_model)
    monkeypatch.setattr(main, "answer", lambda _model, _request: "x = [a for a in b]  # [/bold] is not markup")
    steps = main.run(device="cpu", directory=tmp_path / "demo", max_steps=3)
    shown = capsys.readouterr().out
    assert [stats.step for stats in steps] == [1, 2, 3]
    assert shown.count("x = [a for a in b]  # [/bold] is not markup") == 2
    assert main.PROMPT.splitlines()[0] in shown and "first" in shown
    settings = yaml.safe_load((tmp_path / "demo" / "config.yaml").read_text())
    assert settings["output_dir"] == str(tmp_path / "demo" / "trained")
    assert (tmp_path / "demo" / "trained" / "model.safetensors").exists()
