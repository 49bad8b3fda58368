"""The configuration as its author would write it: without what is a default anyway."""

from collections.abc import Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from slideformer.settings.config import Config

Settings = dict[str, Any]


def as_yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=100)


def changed(settings: Mapping[str, Any], section: type[BaseModel] = Config) -> Settings:
    """The settings that differ from their defaults; keys that this version does not know are kept.

    Args:
        settings: a configuration of which every value is written out, as JSON has it.
        section: the class that knows the defaults.
    """
    kept: Settings = {}
    for key, value in settings.items():
        field = section.model_fields.get(key)
        inner = _section_of(field.annotation) if field else None
        if field and value == _default_of(field):
            continue
        if inner and isinstance(value, list):
            value = [changed(item, inner) if isinstance(item, dict) else item for item in value]
        elif inner and isinstance(value, dict) and not (value := changed(value, inner)):
            continue
        kept[key] = value
    return kept


def _default_of(field: Any) -> Any:
    default = field.get_default(call_default_factory=True)
    return default if default is PydanticUndefined else to_jsonable_python(default)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting is, or is a list of."""
    candidates = (annotation, *get_args(annotation))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
