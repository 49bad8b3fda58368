"""The TRL script of the examples: three lines at most differ, and it runs."""

import difflib
import json
import runpy
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_before_and_after_differ_in_at_most_three_lines():
    before, after = ((EXAMPLES / f"trl_{name}.py").read_text().splitlines() for name in ("before", "after"))
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-" and line[2:].strip()]
    assert changes == [
        "- from trl import SFTConfig, SFTTrainer",
        "+ from trl import SFTConfig",
        "+ from slideformer.integrations.trl import SFTTrainer",
    ]


def test_the_script_runs(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trl")
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "four"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 40)
    script = (EXAMPLES / "trl_after.py").read_text().replace("Qwen/Qwen3-4B", model)
    (tmp_path / "script.py").write_text(script.replace("max_length=1024", "max_length=32, use_cpu=True"))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    assert AutoModelForCausalLM.from_pretrained("chat-model").config.model_type == "qwen3"
    assert AutoTokenizer.from_pretrained("chat-model").chat_template
    assert len((tmp_path / "runs/chat/metrics.jsonl").read_text().splitlines()) == 4
