import os
import subprocess
import sys
from pathlib import Path

import pytest

from slideformer.errors import ConfigError
from slideformer.storage.lock import is_locked, locked


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path):
    refused = pytest.raises(ConfigError, match=rf"is in use by another run \(process {os.getpid()}\)")
    with locked(tmp_path / "out"), refused, locked(tmp_path / "out"):
        pass
    with locked(tmp_path / "out"):
        pass


def test_whether_a_run_holds_it(tmp_path: Path):
    assert not is_locked(tmp_path / "none") and not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []  # asking leaves nothing behind
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_killed_process_holds_no_lock(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from slideformer.storage.lock import is_locked, locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with locked(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: cannot write to .*file/out: Not a directory"), locked(
        tmp_path / "file/out"
    ):  # fmt: skip
        pass


def test_a_read_only_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)  # root may write anywhere
    with pytest.raises(ConfigError, match="cannot write to .*: Permission denied"), locked(tmp_path):
        pass
