"""Promise "robust": whatever a file holds, the answer is a value or one of the project's own errors, never a traceback.

A sample of inputs always; 5,000 of each kind with `make fuzz-test`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from made_up_runs import made_up_config, made_up_record

from slideformer.data.examples import make_examples
from slideformer.data.source import read_records
from slideformer.errors import SlideFormerError
from slideformer.models.weight_files import WeightFiles
from slideformer.report.page import write_report
from slideformer.settings.config import load_config, setting_fields
from slideformer.storage.manifest import Data, Manifest, RunFacts, UnitFile, _digest, parse_manifest
from slideformer.storage.tensor_file import parse_header, read_tensors

SLOW_INPUTS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
EXAMPLES = [60, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]

numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=12) | st.sampled_from(["1e999", "24GiB", "auto", "~"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def fuzzed(examples: int, inputs: st.SearchStrategy[Any], use: Callable[[Any], object]) -> None:
    """Every input is used, or refused by an error of the project."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW_INPUTS)
    @given(inputs)
    def run(given_input: Any) -> None:
        try:
            use(given_input)
        except SlideFormerError as error:
            assert str(error)

    run()


def changed(good: dict[str, Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """A good object with some keys set to anything, at any depth."""

    def set_all(changes: list[tuple[list[Any], Any]]) -> dict[str, Any]:
        content = json.loads(json.dumps(good))
        for path, value in changes:
            place = content
            for key in path[:-1]:
                place = place[key] if isinstance(place, dict) and isinstance(place.get(key), dict) else place
            place[path[-1]] = value
        return content

    return st.lists(st.tuples(st.lists(keys, min_size=1, max_size=4), values), max_size=3).map(set_all)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---- config

KEYS = [key for key, _ in setting_fields()]
SETTINGS = {"model": "m", "output_dir": "out", "data": {"path": "x.jsonl"}, "budget": {}}
setting_names = st.sampled_from([*KEYS, *(key.rpartition(".")[2] for key in KEYS), "data", "budget"]) | st.text(
    max_size=8
)
words = st.lists(
    st.tuples(setting_names, st.text(max_size=8) | scalars.map(str)).map(lambda pair: f"--{pair[0]}={pair[1]}")
    | st.text(max_size=8),
    max_size=3,
)
config_files = st.tuples(
    changed(SETTINGS, setting_names).map(lambda c: yaml.safe_dump(c).encode()) | st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")) | values.map(as_json),
    words,
)  # fmt: skip


@pytest.mark.parametrize("examples", EXAMPLES)
def test_configs(tmp_path: Path, examples: int):
    file = tmp_path / "run.yaml"

    def use(given_input: tuple[bytes, list[str]]) -> None:
        file.write_bytes(given_input[0])
        load_config(file, given_input[1])

    fuzzed(examples, config_files, use)


# ---- records

columns = st.sampled_from(["input_ids", "labels", "messages", "prompt", "completion", "text", "role", "content"])
messages = st.lists(st.dictionaries(columns, values | st.sampled_from(["user", "assistant", "system"]), max_size=3))
ids = st.lists(st.integers(-101, 40) | values, max_size=6)
records = st.lists(st.dictionaries(columns, values | messages | ids, max_size=3).map(as_json) | st.binary(max_size=40))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_records(tmp_path: Path, examples: int):
    file = tmp_path / "data.jsonl"

    def use(lines: list[bytes]) -> None:
        file.write_bytes(b"\n".join(lines))
        make_examples(read_records(file), None, max_length=4, too_long="truncate", vocab_size=32)

    fuzzed(examples, records, use)


# ---- manifests

RUN = RunFacts(steps=9, dtype="bf16", micro_batch_size=2, data=Data(records=3, sha256="0" * 64), versions={}, config={})
UNIT = UnitFile(
    file="00000-a.safetensors", size_bytes=9, sha256="f" * 64, numel=0, trained_numel=0, missed={}, parameters={}
)
GOOD = Manifest(step=3, run=RUN, units={"a": UNIT}).model_dump(mode="json")
manifest_keys = st.sampled_from(["version", "step", "run", "units", "a", "file", "sha256", "config", "parameters"])


def signed(content: Any) -> bytes:
    return as_json({"manifest": content, "sha256": _digest(content)})


manifests = (
    changed(GOOD, manifest_keys | st.text(max_size=6)).map(signed) | st.binary(max_size=60) | values.map(as_json)
)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_manifests(examples: int):
    def use(text: bytes) -> None:
        for unit in parse_manifest(text, "manifest").units.values():
            assert Path(unit.file).name == unit.file not in ("..", ".")

    fuzzed(examples, manifests, use)


# ---- safetensors headers

HEADER = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
header_keys = st.sampled_from(["a", "b", "dtype", "shape", "data_offsets", "__metadata__"])
headers = changed(HEADER, header_keys | st.text(max_size=6)).map(as_json) | st.binary(max_size=60) | values.map(as_json)
lengths = st.none() | st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_headers(tmp_path: Path, examples: int):
    file = tmp_path / "model.safetensors"

    def use(given_input: tuple[bytes, int | None, bytes]) -> None:
        text, length, data = given_input
        file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
        for read in (
            lambda: parse_header(text, "header"),
            lambda: read_tensors(file, {}),
            lambda: WeightFiles(tmp_path),
        ):
            try:
                read()
            except SlideFormerError as error:
                assert str(error)

    fuzzed(examples, st.tuples(headers, lengths, st.binary(max_size=12)), use)


# ---- run directories

RUN_FILES = ["metrics.jsonl", "evals.jsonl", "samples.jsonl"]
measured = st.none() | st.floats() | st.sampled_from([0, 1e-320, -1e300, 1e308, 10**400])
measurements = st.dictionaries(
    st.sampled_from(["loss", "grad_norm", "seconds", "tokens", "tokens_per_second", "gpu_peak_bytes", "wait_seconds"]),
    measured,
).map(lambda record: {"prompt": "p", "answer": "a"} | record)
good_lines = st.lists(measurements, max_size=4).map(lambda all: [as_json({"step": n} | r) for n, r in enumerate(all)])
bad_lines = st.lists(st.dictionaries(columns, values, max_size=2).map(as_json) | st.binary(max_size=20), max_size=2)
run_lines = st.one_of(*[good_lines] * 9, bad_lines)
run_keys = st.sampled_from(
    ["config", "plan", "host_bytes", "device_bytes", "budget", "data", "lengths", "edges", "counts", "reports", "steps"]
)
run_records = changed(made_up_record(made_up_config(Path("out"), 9), 9), run_keys | st.text(max_size=6)).map(as_json)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_run_directories(tmp_path: Path, examples: int):
    def use(given_input: tuple[list[bytes], list[bytes], list[bytes], bytes]) -> None:
        *lines, record = given_input
        for name, content in zip(RUN_FILES, lines, strict=True):
            (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in content))
        (tmp_path / "run.json").write_bytes(record)
        write_report(tmp_path)

    fuzzed(
        examples,
        st.tuples(run_lines, run_lines, run_lines, st.one_of(run_records, run_records, st.binary(max_size=20))),
        use,
    )
