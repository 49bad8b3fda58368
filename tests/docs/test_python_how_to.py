"""The code in docs/how-to/python-api.md runs as it stands, but for the model and the GPU."""

import re
from pathlib import Path

import pytest
from tiny_models import save_tiny_model
from tiny_runs import make_records, read_run, write_config, write_records

PAGE = Path(__file__).parents[2] / "docs/how-to/python-api.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "model", "qwen3")
    data = write_records(tmp_path / "data.jsonl", make_records(4))
    write_config(tmp_path / "config.yaml", model, data, tmp_path / "out", max_steps=2, batch_size=2)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for block in blocks:
        exec(block.replace("Qwen/Qwen3-4B", str(model)), names)  # our own page
    assert len(blocks) == 4 and len(read_run(tmp_path / "out").losses) == 2
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if re.match(r"[123] ", line)]
    assert len(losses) == 3 and losses[0] > losses[-1]
    assert (tmp_path / "my-model/model.safetensors").exists()
