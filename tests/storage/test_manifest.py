import json
from typing import Any

import pytest

from slideformer.errors import CheckpointError
from slideformer.storage.manifest import Data, Manifest, RunFacts, UnitFile, _digest, parse_manifest

RUN = RunFacts(steps=9, dtype="bf16", micro_batch_size=2, data=Data(records=3, sha256="0" * 64), versions={}, config={})
UNIT = UnitFile(
    file="00000-a.safetensors", size_bytes=9, sha256="f" * 64, numel=0, trained_numel=0, missed={}, parameters={}
)
GOOD = Manifest(step=3, run=RUN, units={"a": UNIT}).model_dump(mode="json")


def signed(content: Any) -> bytes:
    return json.dumps({"manifest": content, "sha256": _digest(content)}).encode()


def with_file(name: str) -> Any:
    return {**GOOD, "units": {"a": {**GOOD["units"]["a"], "file": name}}}


def test_a_manifest_comes_back():
    assert parse_manifest(signed(GOOD), "here") == Manifest(step=3, run=RUN, units={"a": UNIT})


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "..", ".", "", "a/b", "a\\b", ".hidden", "a\n", "\x00", "a\x00", "x" * 201, 3, None]
)
def test_a_file_outside_the_directory_is_refused(name: Any):
    with pytest.raises(CheckpointError, match="here: units.a.file"):
        parse_manifest(signed(with_file(name)), "here")


@pytest.mark.parametrize(
    "content",
    [
        None, [], 3, {}, {**GOOD, "step": "3"}, {**GOOD, "step": -1}, {**GOOD, "step": 2.0}, {**GOOD, "more": 1},
        {**GOOD, "units": []}, {**GOOD, "run": None},
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(content: Any):
    with pytest.raises(CheckpointError, match="here"):
        parse_manifest(signed(content), "here")


def test_another_format_version_is_named():
    with pytest.raises(CheckpointError, match="here has format version 2, expected 1"):
        parse_manifest(signed({**GOOD, "version": 2}), "here")


@pytest.mark.parametrize(
    ("path", "place"),
    [(("step",), "step"), (("run", "dtype"), "run.dtype"), (("units", "a", "missed"), "units.a.missed")],
)
def test_what_is_lacking_and_who_wrote_it_is_told(path: tuple[str, ...], place: str):
    content = json.loads(json.dumps(GOOD))
    content["run"]["versions"]["slideformer"] = "0.0.9"
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(CheckpointError, match=f"here lacks {place}, which format version 1 needs") as caught:
        parse_manifest(signed(content), "here")
    assert caught.value.hint == "resume with slideformer 0.0.9, which wrote it"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"{}", signed(GOOD)[:-9]])
def test_what_is_not_json_is_refused(text: bytes):
    with pytest.raises(CheckpointError, match="here is not a manifest"):
        parse_manifest(text, "here")


def test_a_change_after_writing_is_noticed():
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        parse_manifest(signed(GOOD).replace(b'"step": 3', b'"step": 4'), "here")
