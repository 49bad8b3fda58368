"""What a wheel is refused for; building and installing real ones is `make wheels`."""

import zipfile
from pathlib import Path

import check_wheel
import pytest
from build_wheels import Interpreter

import slideformer

VERSION = slideformer.__version__
INFO = f"slideformer-{VERSION}.dist-info"
WHOLE = {
    "slideformer/__init__.py": "",
    "slideformer/_core.abi3.so": "",
    "slideformer/_core.pyi": "",
    "slideformer.libs/libgomp-1234.so.1.0.0": "",
    f"{INFO}/METADATA": f"Metadata-Version: 2.4\nName: slideformer\nVersion: {VERSION}\n",
    f"{INFO}/licenses/LICENSE": "",
}


def wheel_of(directory: Path, files: dict[str, str]) -> Path:
    path = directory / f"slideformer-{VERSION}-cp312-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("python", ["cp311-cp311", "cp312-abi3"])
def test_the_two_wheels_of_a_release_are_right(python: str):
    assert check_wheel.tag_problems(f"slideformer-{VERSION}-{python}-manylinux_2_28_x86_64.whl") == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (f"slideformer-{VERSION}-cp312-cp312-manylinux_2_28_x86_64.whl", "neither cp311-cp311 nor cp312-abi3"),
        (f"slideformer-{VERSION}-cp311-cp311-linux_x86_64.whl", "not a manylinux wheel"),
        ("slideformer-99.0-cp311-cp311-manylinux_2_28_x86_64.whl", "version 99.0"),
    ],
)
def test_wrong_tags_are_named(name: str, problem: str):
    (found,) = check_wheel.tag_problems(name)
    assert problem in found


def test_a_whole_wheel_has_no_problems(tmp_path: Path):
    assert check_wheel.content_problems(wheel_of(tmp_path, WHOLE)) == []


@pytest.mark.parametrize(
    "missing", [name for name in WHOLE if name not in ("slideformer/__init__.py", f"{INFO}/METADATA")]
)
def test_a_file_that_is_missing_is_named(tmp_path: Path, missing: str):
    wheel = wheel_of(tmp_path, {name: content for name, content in WHOLE.items() if name != missing})
    (problem,) = check_wheel.content_problems(wheel)
    assert problem.endswith("is missing")


@pytest.mark.parametrize("extra", ["slideformer/csrc/adamw.cpp", "tests/test_cli.py", "other/module.py"])
def test_what_does_not_belong_in_it_is_named(tmp_path: Path, extra: str):
    problems = check_wheel.content_problems(wheel_of(tmp_path, {**WHOLE, extra: ""}))
    assert problems and all("does not belong in it" in problem for problem in problems)


def test_another_version_inside_is_named(tmp_path: Path):
    wheel = wheel_of(tmp_path, {**WHOLE, f"{INFO}/METADATA": "Version: 0.0.9\n"})
    assert check_wheel.content_problems(wheel) == ["METADATA says version 0.0.9"]


def test_an_interpreter_that_does_not_start_is_none(tmp_path: Path):
    broken = tmp_path / "python3.12"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert Interpreter.at(str(broken)) is None and Interpreter.at(str(tmp_path / "none")) is None
