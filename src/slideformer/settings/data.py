"""The settings that say what to train on and what to evaluate on."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

DEFAULT_SPLIT = "train"
TrainOn = Literal["assistant", "last", "everything"]
OnError = Literal["stop", "skip"]


def _expanded(path: Path) -> Path:
    return path.expanduser()


UserPath = Annotated[Path, AfterValidator(_expanded)]


class Section(BaseModel):
    """A group of settings that cannot change after validation and holds no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class Source(Section):
    """Where records come from: one file, data set directory or hub id."""

    path: UserPath = Field(description="a JSONL, JSON, CSV or Parquet file, a data set's directory, or a hub id")
    name: str | None = Field(default=None, description="the configuration of a hub data set")
    split: str = Field(default=DEFAULT_SPLIT, description="the split of a hub data set, such as train or train[:1%]")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set")
    weight: float = Field(default=1.0, gt=0, description="times each record is seen in an epoch; 0.5: every second one")


class Sources(Section):
    """One source by its path, or a list of several."""

    path: UserPath | None = Field(
        default=None, description="a JSONL, JSON, CSV or Parquet file, a data set's directory, or a hub id"
    )
    name: str | None = Field(default=None, description="the configuration of a hub data set")
    split: str = Field(default=DEFAULT_SPLIT, description="the split of a hub data set, such as train or train[:1%]")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set")
    sources: list[Source] = Field(
        default=[], description="several sources instead of path, each with path, name, split, revision and weight"
    )

    def all_sources(self) -> list[Source]:
        """`sources`, or `path` as the only one."""
        if self.path is None:
            return self.sources
        return [Source(path=self.path, name=self.name, split=self.split, revision=self.revision)]

    def conflict(self, section: str) -> str | None:
        """What contradicts itself in this section, and its remedy."""
        if self.sources and (self.path or self.name or self.revision or self.split != DEFAULT_SPLIT):
            return f"{section}.sources stands beside path, name, split or revision; move these into the list of sources"
        return None


class Data(Sources):
    """What to train on."""

    shuffle: bool = Field(
        default=True, description="draw records in a new random order each epoch; false keeps file order"
    )
    train_on: TrainOn = Field(
        default="assistant",
        description="what the loss is taken on: every answer, the last answer of a conversation, or prompts as well",
    )
    chat_template: UserPath | None = Field(
        default=None, description="a Jinja file that replaces the tokenizer's chat template, in the saved model too"
    )
    on_error: OnError = Field(
        default="stop", description="what happens at a record that cannot be used: end, or leave it out and count it"
    )
    cache_dir: Path | None = Field(
        default=Path("~/.cache/slideformer"), description="where tokenized data is kept; null: tokenize in each run"
    )

    @model_validator(mode="after")
    def _path_or_sources(self) -> "Data":
        if not self.all_sources():
            raise PydanticCustomError("conflict", "data.path is missing; set data.path to a path, or data.sources")
        if conflict := self.conflict("data"):
            raise PydanticCustomError("conflict", conflict)  # type: ignore[arg-type]  # a literal for static analysis
        return self


class EvalData(Sources):
    """What to evaluate on, encoded as `data` says; without a source: nothing."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> "EvalData":
        conflict = self.conflict("eval_data")
        if not self.all_sources() and (self.name or self.revision or self.split != DEFAULT_SPLIT):
            conflict = "eval_data.path is missing; set eval_data.path to a path, or eval_data.sources"
        if conflict:
            raise PydanticCustomError("conflict", conflict)  # type: ignore[arg-type]  # a literal for static analysis
        return self
