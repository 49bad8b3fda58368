"""What a checkpoint says about itself: one JSON file with sizes and checksums of all others, and its own."""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from slideformer.errors import CheckpointError
from slideformer.layout import FlatLayout
from slideformer.units import MIB

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MOST_BYTES = 64 * MIB
# A plain name: no separator, and no dot in front, so that it cannot lead out of its directory.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\z", max_length=200)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel):
    """Neither unknown keys nor values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Place(Strict):
    """Where a parameter lies in its unit's flat vectors."""

    start: Count
    shape: list[Count]


class UnitFile(Strict):
    """The file of one unit: its flat vectors hi and lo of `numel` elements, exp_avg and exp_avg_sq of `trained_numel`.

    `missed` counts, by parameter, the steps that brought it no gradient.
    """

    file: FileName
    size_bytes: Count
    sha256: Sha256
    numel: Count
    trained_numel: Count
    missed: dict[str, Count]
    parameters: dict[str, Place]


class Data(Strict):
    """The tokenized records that the run trains on."""

    records: Count
    sha256: Sha256


class RunFacts(Strict):
    """What a run was, for whoever continues it.

    Attributes:
        steps: optimizer steps of the whole run.
        dtype: what the layers computed in.
        micro_batch_size: sequences computed together; it decides in which order gradients are summed.
        optimizer_state: what the units' files hold moments in.
        versions: of the packages that compute.
        config: every setting.
    """

    steps: Count
    dtype: Literal["bf16", "fp32"]
    micro_batch_size: Count
    optimizer_state: Literal["fp32", "bf16"] = "fp32"
    data: Data
    versions: dict[str, str]
    config: dict[str, Any]


class Manifest(Strict):
    """One checkpoint; `step` is the last optimizer step that it contains, counted from 1."""

    version: Literal[1] = FORMAT_VERSION
    step: Count
    run: RunFacts
    units: dict[str, UnitFile]


def places(layout: FlatLayout) -> dict[str, Place]:
    """The layout as a manifest describes it."""
    return {field.name: Place(start=field.start, shape=list(field.shape)) for field in layout.fields.values()}


def shapes_of(layout: FlatLayout) -> dict[str, list[int]]:
    """The layout's parameters, wherever they lie."""
    return {field.name: list(field.shape) for field in layout.fields.values()}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the file and sync it."""
    content = manifest.model_dump(mode="json")
    with (directory / MANIFEST).open("x", encoding="utf-8") as file:
        json.dump({"manifest": content, "sha256": _digest(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, of another format version, or names files outside its directory.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, source: str) -> Manifest:
    """The manifest in `text`; `source` is named in errors, which are those of `read_manifest`."""
    if len(text) > MOST_BYTES:
        raise CheckpointError(f"{source} is larger than any manifest")
    try:
        whole = json.loads(text)
        content, claimed = whole["manifest"], whole["sha256"]
        intact = _digest(content) == claimed
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{source} is not a manifest: {error!r}") from error
    if not intact:
        raise CheckpointError(f"{source} was changed after it was written: its checksum is another")
    return _validated(content, source)


def _validated(content: Any, source: str) -> Manifest:
    if isinstance(content, dict) and content.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{source} has format version {content.get('version')!r}, expected {FORMAT_VERSION}", _writer(content)
        )
    try:
        return Manifest.model_validate(content)
    except RecursionError as error:
        raise CheckpointError(f"{source} is nested too deeply") from error
    except ValidationError as error:
        reason = error.errors()[0]
        place = ".".join(map(str, reason["loc"]))
        lacks = f"{source} lacks {place}, which format version {FORMAT_VERSION} needs"
        message = lacks if reason["type"] == "missing" else f"{source}: {place}: {reason['msg']}"
        raise CheckpointError(message, _writer(content)) from error


def _writer(content: Any) -> str:
    """What reads a manifest that this version does not: the version that wrote it, if it says so."""
    try:
        return f"resume with slideformer {content['run']['versions']['slideformer']:.40}, which wrote it"
    except (KeyError, TypeError, ValueError):
        return "resume with the version of slideformer that wrote it"


def _digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
