"""Dotted keys ("training.batch_size"): their table, nested data to and from flat, errors for unknown ones."""

import difflib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kava.config.fields import Idle, Variants
from kava.config.schema import Recipe
from kava.errors import ConfigError

FREE = "training.hf"  # any name is allowed below this key
_OTHER = {"mixture.teachers": "a list of names or mappings (name, model, prompt, ...)"}


class RecipeKey(NamedTuple):
    """One setting: its default and the description of its field."""

    name: str
    default: Any
    kind: str  # the allowed values, in words
    is_text: bool  # a plain string: the command line's characters are taken as they are
    tag: str
    source: str
    description: str
    idle: tuple[Idle, ...]


def flatten(data: Mapping[str, Any], label: str, known: Mapping[str, RecipeKey] | None) -> dict[str, Any]:
    """Nested sections as {"training.batch_size": 64, ...}; unknown keys are errors unless `known` is None."""
    flat: dict[str, Any] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for part, value in node.items():
            name = f"{prefix}{part}"
            section = name in SECTIONS
            if prefix == FREE + ".":
                flat[name] = value
            elif isinstance(value, Mapping) and (section or name == FREE):
                visit(value, name + ".")
            elif section and value is None:
                continue  # "training:" with every line below it commented out
            elif section:
                raise ConfigError(f"{label}: {name} = {show(value)} is not valid: it is a section of keys")
            elif known is not None and name not in known:
                raise unknown_key(name, label)
            else:
                flat[name] = value

    visit(data, "")
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        free = name.startswith(FREE + ".")
        *sections, leaf = [*FREE.split("."), name[len(FREE) + 1 :]] if free else name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def unknown_key(name: str, label: str) -> ConfigError:
    """The error for an unknown key, with the nearest known one."""
    if name in SECTIONS:
        inside = next(key for key in KEYS if key.startswith(name + "."))
        return ConfigError(f"{label}: {name!r} is a section, not a key", f"name one of its keys, such as {inside}")
    leaf = name.rpartition(".")[2]
    same_leaf = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    close = same_leaf or _close_keys(name)
    hint = f"did you mean {close[0]!r}?" if close else "kava config --keys lists every key"
    return ConfigError(f"{label}: unknown key {name!r}", hint)


def _close_keys(name: str) -> list[str]:
    """The known key that `name` is likely to be, misspelt in its section or in its leaf; [] where none is near."""
    whole = difflib.get_close_matches(name, [*KEYS, *sorted(SECTIONS)], n=1, cutoff=0.6)
    section, _, leaf = name.rpartition(".")
    inside = {key.removeprefix(section + "."): key for key in KEYS if key.startswith(section + ".")}
    if not inside:  # the section is misspelt, too: then the leaf has to be near
        return [key for key in whole if difflib.get_close_matches(leaf, [key.rpartition(".")[2]], cutoff=0.6)]
    return [inside[near] for near in difflib.get_close_matches(leaf, list(inside), n=1, cutoff=0.6)]


def show(value: Any) -> str:
    """A value in the notation of a recipe, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {show(item)}" for name, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    return text if text.isprintable() else ascii(text)


def _walk(
    model: type[BaseModel], prefix: str = "", idle: tuple[Idle, ...] = ()
) -> Iterator[tuple[str, FieldInfo, tuple[Idle, ...]]]:
    """Every key below a section, its field, and its rules, those of its sections first."""
    for field_name, field in model.model_fields.items():
        name = prefix + (field.alias or field_name)
        kind = field.annotation
        rules = (*idle, *_extra(field).get("idle", ()))
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, name + ".", rules)
        else:
            yield name, field, rules


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _choices(annotation: Any) -> tuple[list[Any], bool]:
    """The plain types and literals of an annotation, and whether null is one of them."""
    if get_origin(annotation) in (Union, UnionType):
        parts = get_args(annotation)
        return [part for part in parts if part is not type(None)], type(None) in parts
    return [annotation], False


def _limits(field: FieldInfo) -> str:
    words = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{sign} {getattr(rule, name)}" for rule in field.metadata for name, sign in words.items()
              if getattr(rule, name, None) is not None]  # fmt: skip
    return " and ".join(limits)


def _describe(name: str, field: FieldInfo) -> str:
    """The values that a key allows, e.g. "an integer >= 1 or null"."""
    (kind, *_), nullable = _choices(field.annotation)
    if get_origin(kind) is Literal:
        text = "one of " + ", ".join(str(choice) for choice in get_args(kind))
    elif variants := [str(rule) for rule in field.metadata if isinstance(rule, Variants)]:
        text = variants[0]
    else:
        plain = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        numbers = get_args(kind)[:1] == (float,)
        container = "a mapping" if get_origin(kind) is dict else f"a list of {'numbers' if numbers else 'names'}"
        text = plain.get(kind) or _OTHER.get(name) or container
    limits = _limits(field)
    return text + (f" {limits}" if limits else "") + (" or null" if nullable else "")


def _table() -> dict[str, RecipeKey]:
    defaults = flatten(Recipe().to_dict(), "defaults", None)
    table = {}
    for name, field, idle in _walk(Recipe):
        extra = _extra(field)
        (kind, *_), _ = _choices(field.annotation)
        table[name] = RecipeKey(
            name,
            defaults.get(name, {}),
            _describe(name, field),
            kind is str and not any(isinstance(rule, Variants) for rule in field.metadata),
            str(extra.get("tag", "ours")),
            str(extra.get("source", "")),
            field.description or "",
            idle,
        )
    return table


SECTIONS = {name.rpartition(".")[0] for name, *_ in _walk(Recipe)}
KEYS: dict[str, RecipeKey] = _table()
# keys that also take package.module:Name
VARIANTS = {name for name, field, _ in _walk(Recipe) if any(isinstance(rule, Variants) for rule in field.metadata)}
