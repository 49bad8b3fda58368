"""Settings as people read and write them: sizes, dotted keys, values in YAML, what is accepted."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from slideformer.settings.data import Source
from slideformer.units import parse_bytes


def _checked_size(text: str) -> str:
    parse_bytes(text)
    return text


Size = Annotated[str, AfterValidator(_checked_size)]


def setting_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting as (dotted key, field), in the order of declaration."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def expected(field: FieldInfo) -> str:
    """What a setting accepts, in words: "a number >= 0 and < 1", "auto, cuda or cpu", "a path or null"."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    words = " or ".join(_kind_in_words(kind) for kind in kinds if kind is not type(None))
    signs = {Ge: ">= {0.ge}", Gt: "> {0.gt}", Le: "<= {0.le}", Lt: "< {0.lt}"}
    bounds = " and ".join(signs[type(bound)].format(bound) for bound in field.metadata if type(bound) in signs)
    return f"{words} {bounds}".rstrip() + (" or null" if type(None) in kinds else "")


def in_yaml(value: Any) -> str:
    """A value as it is written in YAML: None -> "null", True -> "true", "" -> "''"."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) or "''"


def _kind_in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *most, last = get_args(kind)
        return f"{', '.join(most)} or {last}"
    if kind is Size:
        return "a size such as 24GiB"
    if get_origin(kind) is list:
        return {Source: "a list of sources"}.get(get_args(kind)[0], "a list of names, texts or patterns")
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a name", Path: "a path"}[base]
