"""Checks a wheel: its tags, what is in it, and that it installs and imports where there is no compiler.

python release/check_wheel.py WHEEL [--python PATH]
"""

import argparse
import email
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
# What the command line needs before anything large is imported; torch is not for this check to download.
LIGHT_DEPENDENCIES = ("pydantic", "pyyaml", "shtab")
SOURCE_SUFFIXES = (".cpp", ".h", ".c", ".o", ".a")
SMOKE_TEST = """
from pathlib import Path
import slideformer
from slideformer import _core
assert _core.selected_isa() in _core.available_isas()
maps = Path("/proc/self/maps").read_text()
assert "slideformer.libs/libgomp" in maps, "libgomp was loaded from elsewhere"
print("imported", slideformer.__version__, "with", _core.selected_isa())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter to install with (default: this one)")
    arguments = parser.parse_args()
    check(arguments.wheel, arguments.python)
    print(f"ok: {arguments.wheel}")


def check(wheel: Path, python: str) -> None:
    """Everything; ends the program at the first thing that is wrong."""
    problems = [*tag_problems(wheel.name), *content_problems(wheel)]
    if problems:
        sys.exit("\n".join(f"{wheel.name}: {problem}" for problem in problems))
    with tempfile.TemporaryDirectory() as directory:
        _install_and_import(wheel, python, Path(directory))


def tag_problems(name: str) -> list[str]:
    """A wheel is for Python 3.11 alone or for the stable ABI from 3.12 on, and for a named C library."""
    _, version, _, tags = parse_wheel_filename(name)
    problems = []
    if {(tag.interpreter, tag.abi) for tag in tags} not in ({("cp311", "cp311")}, {("cp312", "abi3")}):
        problems.append("neither cp311-cp311 nor cp312-abi3")
    if not all(tag.platform.startswith("manylinux_") for tag in tags):
        problems.append("not a manylinux wheel; auditwheel repair makes one")
    if str(version) != _project_version():
        problems.append(f"version {version}, but pyproject.toml says {_project_version()}")
    return problems


def content_problems(wheel: Path) -> list[str]:
    """The compiled core, its libgomp and the license are in; sources and tests are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        version = email.message_from_bytes(archive.read(metadata))["Version"]
    core = "slideformer/_core.abi3.so" if "-abi3-" in wheel.name else "slideformer/_core.cpython-311-"
    problems = [f"{what} is missing" for what, found in (
        ("the compiled core", sum(name.startswith(core) for name in names) == 1),
        ("libgomp", any(name.startswith("slideformer.libs/libgomp") for name in names)),
        ("LICENSE", any(name.endswith(".dist-info/licenses/LICENSE") for name in names)),
        ("_core.pyi", "slideformer/_core.pyi" in names),
    ) if not found]  # fmt: skip
    unwanted = [name for name in names if name.endswith(SOURCE_SUFFIXES) or name.startswith(("tests/", "benchmarks/"))]
    top = {name.partition("/")[0] for name in names} - {"slideformer", "slideformer.libs"}
    problems += [f"{name} does not belong in it" for name in unwanted]
    problems += [f"{name} does not belong in it" for name in top if not name.endswith(".dist-info")]
    return problems + ([] if version == _project_version() else [f"METADATA says version {version}"])


def _install_and_import(wheel: Path, python: str, directory: Path) -> None:
    """In a fresh environment whose PATH holds nothing but itself: no compiler, no cmake."""
    subprocess.run([python, "-m", "venv", str(directory)], check=True)
    bare = os.environ | {"PATH": str(directory / "bin")}
    interpreter = str(directory / "bin/python")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    for command in (
        [*pip, *LIGHT_DEPENDENCIES],
        [*pip, "--no-deps", str(wheel.resolve())],
        [interpreter, "-I", "-c", SMOKE_TEST],
        [str(directory / "bin/slideformer"), "--version"],
    ):
        if subprocess.run(command, env=bare, cwd=directory).returncode:
            sys.exit(f"{wheel.name}: failed: {' '.join(command)}")


def _project_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


if __name__ == "__main__":
    main()
