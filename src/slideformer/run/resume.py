"""Continuing a run: which checkpoint, whether it is one of this run, and what will differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideformer.errors import CheckpointError, ConfigError
from slideformer.settings.config import Config
from slideformer.settings.words import in_yaml
from slideformer.storage.checkpoint import UnitState, check_layouts, find_checkpoints, restore
from slideformer.storage.manifest import Manifest, RunFacts, read_manifest

AUTO = Path("auto")
ORDER = ("batch_size", "seed", "data.shuffle")  # with the records, these say what a step number means
# Of the others, those that enter the arithmetic. Budgets and the window's depth do not change a bit.
ARITHMETIC = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type",
    "warmup_steps", "warmup_ratio", "device", "kernels", "attn_implementation",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A checkpoint whose manifest is intact; its other files have not been read."""

    path: Path
    manifest: Manifest


def find_candidates(config: Config) -> list[Candidate]:
    """What `resume_from_checkpoint` allows to continue from, newest first; empty to start from the beginning.

    Raises:
        ConfigError: `output_dir` holds checkpoints and the config does not say that they are to be continued.
        CheckpointError: the named checkpoint, or every one, has no intact manifest.
    """
    chosen, there = config.resume_from_checkpoint, find_checkpoints(config.output_dir)
    if chosen is None:
        _refuse_to_start_over(config.output_dir, there)
        return []
    if chosen != AUTO:
        return [Candidate(chosen, read_manifest(chosen))]
    if not there:
        print(f"no checkpoint in {config.output_dir}: starting from the beginning")
        return []
    intact = []
    for path in there:
        try:
            intact.append(Candidate(path, read_manifest(path)))
        except CheckpointError as error:
            print(f"skipped {path}: {error.message}")
    if not intact:
        raise _none_left(config.output_dir)
    return intact


def restore_newest(candidates: list[Candidate], units: Mapping[str, UnitState], run: RunFacts, named: bool) -> int:
    """Fill `units` from the first candidate that verifies; returns its step.

    Args:
        run: what the run is now.
        named: the user chose this checkpoint: if it is damaged there is nothing to fall back to.

    Raises:
        ConfigError: the data, their order, or the type of the moments are not those of the checkpoint.
        CheckpointError: no candidate is whole, or one is of another model.
    """
    for candidate in candidates:
        _check_same_data(candidate, run)
        check_layouts(candidate.path, candidate.manifest, units)
        try:
            restore(candidate.path, candidate.manifest, units)
        except CheckpointError as error:
            if named:
                raise
            print(f"skipped {candidate.path}: {error.message}")
            continue
        print(f"resumed from {candidate.path}, after step {candidate.manifest.step}")
        if changes := differences(candidate.manifest.run, run):
            print(f"not as the run would have gone on by itself: {'; '.join(changes)}")
        return candidate.manifest.step
    raise _none_left(candidates[0].path.parent)


def differences(before: RunFacts, now: RunFacts) -> list[str]:
    """What changes the arithmetic between the run that saved and the run that resumes, in words."""
    pairs: dict[str, tuple[Any, Any]] = {
        **{key: (setting(before, key), setting(now, key)) for key in ARITHMETIC},
        **{key: (getattr(before, key), getattr(now, key)) for key in ("steps", "dtype", "micro_batch_size")},
        **{name: (before.versions.get(name), found) for name, found in now.versions.items()},
    }
    return [f"{key} {in_yaml(old)} -> {in_yaml(new)}" for key, (old, new) in pairs.items() if old != new]


def setting(run: RunFacts, key: str) -> Any:
    """A setting of the run by its dotted key; None where it has none."""
    value: Any = run.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_same_data(candidate: Candidate, run: RunFacts) -> None:
    before = candidate.manifest.run
    if before.data != run.data:
        raise ConfigError(
            f"{candidate.path}: its {before.data.records} records are not the {run.data.records} records of now",
            "give the same data, max_length, too_long and tokenizer; or begin a new run in another output_dir",
        )
    if before.optimizer_state != run.optimizer_state:
        raise ConfigError(
            f"{candidate.path}: optimizer_state was {before.optimizer_state} and is {run.optimizer_state} now",
            f"set optimizer_state: {before.optimizer_state}; or begin a new run, in another output_dir",
        )
    for key in ORDER:
        if (old := setting(before, key)) != (new := setting(run, key)):
            raise ConfigError(
                f"{candidate.path}: {key} was {in_yaml(old)} and is {in_yaml(new)} now, so the data's order is another",
                f"set {key}: {in_yaml(old)}",
            )
    if (old := _row_length(before)) != (new := _row_length(run)):
        old, new = (f"packed into rows of {length}" if length else "not packed" for length in (old, new))
        raise ConfigError(
            f"{candidate.path}: records were {old} and are {new} now, so a step is another",
            "give packing and max_length the values they had",
        )
    if (old := _weights(before)) != (new := _weights(run)):
        raise ConfigError(
            f"{candidate.path}: the weights of data.sources were {old}, now {new}, so the data's order is another",
            "give data.sources the weights they had",
        )


def _row_length(run: RunFacts) -> int | None:
    """Of packed rows; None in a run that packs nothing."""
    return setting(run, "max_length") if setting(run, "packing") else None


def _weights(run: RunFacts) -> list[float]:
    return [source["weight"] for source in setting(run, "data.sources") or []]


def _refuse_to_start_over(output_dir: Path, there: list[Path]) -> None:
    if there:
        raise ConfigError(
            f"output_dir: {output_dir} holds checkpoints of an earlier run, such as {there[0].name}",
            "set resume_from_checkpoint: auto to continue it, or remove them to start again",
        )


def _none_left(directory: Path) -> CheckpointError:
    return CheckpointError(
        f"no checkpoint in {directory} is whole", "remove the damaged ones to start again from the beginning"
    )
