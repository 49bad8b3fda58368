"""Weights in: a Hugging Face directory's safetensors -> a model's parameters, one group (a layer) at a time.

Names in files are not always the model's: a prefix may be missing, a name legacy, and transformers 5 stacks what older
files hold expert by expert. transformers' own renamings and converters say what becomes what. They run here twice:
on the meta device over the headers of all files, so that every name and shape is checked before anything big is read,
then on the memory-mapped tensors of one group at a time.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from slideformer.errors import WeightsError
from slideformer.models.weight_files import WeightFiles, few

Key = TypeVar("Key")

# buffers that older versions wrote into files and every model computes by itself
COMPUTED_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.masked_bias$")


def stream_in(path: Path, model: Any, groups: Mapping[Key, Iterable[str]]) -> Iterator[tuple[Key, dict[str, Tensor]]]:
    """Yield each group's parameters, in the order of `groups`, in the dtype of the files (bf16, fp16, fp32).

    All headers are read and compared with the model before this returns; a tensor is read when its group comes, once.
    Tensors may be views of a memory-mapped file: copy out of them, never write to them. The yielded dict is emptied
    when the next group is asked for, so that one group is alive at a time. Persistent buffers of `model` that are not
    on the meta device are filled in place first.

    Args:
        path: a directory with `model.safetensors`, or with shards and their index.
        model: the `PreTrainedModel`, its parameters on the meta device.
        groups: key (a layer, "embedding", ...) -> names of parameters of `model`; of tied names, either or both.

    Raises:
        WeightsError: no weights, a format that is not read, a damaged file, or parameters that are missing,
            unexpected, of the wrong shape, or tied by the config and different in the files.
    """
    files = WeightFiles(path)
    recipes = Recipes(files, model, {name for names in groups.values() for name in names})
    return _stream(recipes, model, groups)


def _stream(
    recipes: "Recipes", model: Any, groups: Mapping[Key, Iterable[str]]
) -> Iterator[tuple[Key, dict[str, Tensor]]]:
    buffers = {name: buffer for name, buffer in persistent_buffers(model).items() if not buffer.is_meta}
    for name, value in recipes.cook([name for name in buffers if name in recipes.by_name]).items():
        buffers[name].copy_(value)
    for key, names in groups.items():
        tensors = recipes.cook(names)
        yield key, tensors
        tensors.clear()


def persistent_buffers(model: Any) -> dict[str, Tensor]:
    """The buffers that belong into a model's files, by name."""
    buffers = dict(model.named_buffers())
    return {name: buffers[name] for name in model.state_dict() if name in buffers}


@dataclass
class Recipe:
    """How a parameter is made: from these tensors of the files, through this converter (or as they are)."""

    target: str  # the parameter's name; the first one's where a converter makes several
    converter: WeightConverter | None
    sources: list[tuple[str, str]] = field(default_factory=list)  # (name in the files, the converter's pattern for it)

    def cook(self, model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name in the files -> tensor becomes name in the model -> tensor."""
        if self.converter is None:
            return {self.target: tensors[self.sources[0][0]]}
        converter: Any = deepcopy(self.converter)  # it collects tensors, and is used once per layer
        for key, pattern in self.sources:
            converter.add_tensor(self.target, key, pattern, tensors[key])
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class Recipes:
    """The recipe of every parameter and persistent buffer of a model, checked against the files' headers.

    Args:
        files: the checkpoint.
        model: the `PreTrainedModel` that is filled.
        wanted: names of the parameters that will be asked for.

    Raises:
        WeightsError: files and model do not match.
    """

    def __init__(self, files: WeightFiles, model: Any, wanted: set[str]):
        self.files, self.model = files, model
        expected = model.state_dict()
        recipes, unexpected = _match(files.headers, model, expected)
        self.by_name: dict[str, Recipe] = {}
        wrong: list[str] = []
        for recipe in recipes:
            shapes = self._made_shapes(recipe, expected, wrong)
            unexpected += [name for name in shapes if name not in expected]
            wrong += [
                f"{name} is {list(shape)} in the files and {list(expected[name].shape)} in the model"
                for name, shape in shapes.items()
                if name in expected and shape != expected[name].shape
            ]
            self.by_name.update(dict.fromkeys(shapes, recipe))
        self.twin_of = self._tie(model.all_tied_weights_keys)
        missing = sorted((wanted | _required_buffers(model)) - self.by_name.keys(), key=dot_natural_key)
        _refuse(files.path, missing, unexpected, wrong)

    def cook(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Name in the model -> tensor, for these names."""
        recipe_of = {name: self.by_name[name] for name in names}
        recipes = {id(recipe): recipe for recipe in recipe_of.values()}.values()
        tensors = self.files.read(key for recipe in recipes for key, _ in recipe.sources)
        made = {id(recipe): recipe.cook(self.model, tensors) for recipe in recipes}
        parameters = {}
        for name, recipe in recipe_of.items():
            values = made[id(recipe)]
            parameters[name] = values[name if name in values else recipe.target]  # of two tied names one was made
        for name, value in parameters.items():
            self._compare_with_twin(name, value)
        return parameters

    def _made_shapes(self, recipe: Recipe, expected: Mapping[str, Tensor], wrong: list[str]) -> dict[str, torch.Size]:
        """Shapes that a recipe makes, found on the meta device; what goes wrong is added to `wrong`."""
        keys = [key for key, _ in recipe.sources]
        if recipe.converter is None and len(keys) > 1:
            wrong.append(f"{recipe.target} is there {len(keys)} times, as {few(keys)}")
        try:
            made = recipe.cook(self.model, {key: self.files.headers[key].on_meta() for key in keys})
        except Exception as error:  # whatever the conversion raises on shapes that do not go together
            wrong.append(f"{recipe.target} cannot be made from {few(keys)} ({error})")
            return {recipe.target: expected[recipe.target].shape}
        return {name: value.shape for name, value in made.items()}

    def _tie(self, tied: Mapping[str, str]) -> dict[str, str]:
        """Let tied names share a recipe; where the files hold both, return {one: the other} for comparison."""
        twin_of = {}
        for target, origin in tied.items():
            if target in self.by_name and origin in self.by_name:
                twin_of[origin] = target
            elif origin in self.by_name:
                self.by_name[target] = self.by_name[origin]
            elif target in self.by_name:
                self.by_name[origin] = self.by_name[target]
        return twin_of

    def _compare_with_twin(self, name: str, value: Tensor) -> None:
        twin = self.twin_of.get(name)
        if twin is None:
            return
        recipe = self.by_name[twin]
        other = recipe.cook(self.model, self.files.read(key for key, _ in recipe.sources))[twin]
        if not torch.equal(value, other):
            raise WeightsError(
                f"{self.files.path}: the config ties {twin} to {name}, but the files hold different values for them",
                hint="set tie_word_embeddings to false in config.json if they are separate weights",
            )


def _match(keys: Iterable[str], model: Any, expected: Mapping[str, Tensor]) -> tuple[list[Recipe], list[str]]:
    """Recipes made of the names in the files that lead to a name in `expected`, and those that should but do not."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, names = model.base_model_prefix, dict(expected)
    recipes: dict[str, Recipe] = {}
    unexpected = []
    # natural order: experts are stacked in the order in which they come, and some renamings depend on what came before
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:  # a current name that a legacy renaming caught
            name, pattern = rename_source_key(key, [], [], prefix, names)
        if name not in names:
            unexpected.append(name)
            continue
        recipe = recipes.setdefault(name, Recipe(name, converter_of[pattern] if pattern else None))
        recipe.sources.append((key, pattern or key))
    ignorable = [*COMPUTED_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())]
    return list(recipes.values()), [name for name in unexpected if not _any_match(ignorable, name)]


def _required_buffers(model: Any) -> set[str]:
    optional = model._keys_to_ignore_on_load_missing or ()
    return {name for name in persistent_buffers(model) if not _any_match(optional, name)}


def _any_match(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _refuse(path: Path, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    """Raise if anything does not match."""
    found = [
        f"{len(names)} {kind}: {few(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong", wrong))
        if names
    ]
    if found:
        raise WeightsError(
            f"{path}: the files do not hold this model's parameters; " + "; ".join(found),
            hint="check that config.json belongs to these weights",
        )
