"""The scripts that shells read; bash's is run as bash runs it, fish's by fish where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from slideformer.cli import main
from slideformer.settings.config import setting_fields

CONFIG_COMMANDS = ("train", "plan", "data")
# Bash's own call: the words of the line and the place of the cursor in, the candidates out.
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
compopt() { :; }
_shtab_slideformer
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Path:
    """The script for the shell that the test names."""
    shell = request.param
    assert main(["completion", shell]) == 0
    file = tmp_path / f"script.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


def press_tab(script: Path, *words: str) -> set[str]:
    command = ["bash", "-c", PRESS_TAB, "bash", str(script), "slideformer", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stderr == ""
    return set(result.stdout.split())


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_commands_settings_and_their_values(script: Path):
    assert press_tab(script, "tr") == {"train", "trace"}
    assert press_tab(script, "train", "run.yaml", "--learn") == {"--learning_rate"}
    assert press_tab(script, "plan", "run.yaml", "--budget.g") == {"--budget.gpu"}
    assert press_tab(script, "train", "run.yaml", "--data.train_on", "") == {"assistant", "last", "everything"}
    assert press_tab(script, "train", "run.yaml", "--trust_remote_code", "t") == {"true"}
    assert press_tab(script, "export", "--dtype", "") == {"bf16", "fp32"}


@pytest.mark.parametrize("command", CONFIG_COMMANDS)
@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_knows_every_setting(script: Path, command: str):
    offered = press_tab(script, command, "run.yaml", "--")
    assert {f"--{key}" for key, _ in setting_fields()} <= offered


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_the_config_with_files(script: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(script.parent)
    (script.parent / "run.yaml").touch()
    assert press_tab(script, "train", "ru") == {"run.yaml"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes_a_setting(script: Path):
    command = f"source {script}; complete -C 'slideformer train run.yaml --learn'"
    result = subprocess.run(["fish", "--no-config", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("--learning_rate\t")


@pytest.mark.parametrize("script", ["zsh", "fish"], indirect=True)
def test_the_other_scripts_hold_every_setting(script: Path):
    text = script.read_text()
    assert all(key in text for key, _ in setting_fields())


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["completion", "csh"])
    assert end.value.code == 2 and "csh" in capsys.readouterr().err
