"""Converts YAML and JSON text to plain data and back, with the numbers and booleans of YAML 1.2; repeated keys are errors.

PyYAML alone reads `1e-3` as a string, `no` as false, `010` as eight, and silently keeps the last of two equal keys.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from kava.errors import ConfigError
from kava.files import write_text

_PLAIN = (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+.0123456789")),
)


_SURROGATE = re.compile("[\ud800-\udfff]")
REMEMBERED = 1 << 14  # characters of a YAML text that is read once a process: a recipe takes PyYAML ten milliseconds
DEEPEST = 100  # levels of lists and mappings; pydantic writes 255
RECIPES = "kava config --list shows recipes"


class _YamlLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.deep_construct = True  # an alias inside its own anchor is then an error, not a list without an end

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
            if key_node.value in names:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} appears twice", key_node.start_mark
                )
            names.add(key_node.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in _PLAIN:
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_YamlLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"key {key!r} appears twice")
        data[key] = value
    return data


_KINDS = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "empty"}


def _texts(data: Any) -> Iterator[str]:
    """Every text in nested data, keys included."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        yield from (text for pair in data.items() for part in pair for text in _texts(part))
    elif isinstance(data, list):
        yield from (text for part in data for text in _texts(part))


def _check_depth(data: Any) -> None:
    level = {id(data): data}
    for _ in range(DEEPEST):
        parts = (
            part
            for item in level.values()
            for part in (item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ())
        )
        level = {id(part): part for part in parts}  # an alias repeats the same object
        if not level:
            return
    raise RecursionError


def _read(text: str, as_json: bool = False) -> Any:
    data = json.loads(text, object_pairs_hook=_unique) if as_json else yaml.load(text, Loader=_YamlLoader)
    _check_depth(data)
    return data


_read_once = lru_cache(maxsize=256)(_read)


def parse_text(text: str, label: str, as_json: bool = False) -> Any:
    """The data in YAML (or JSON) `text`; `label` names it in errors."""
    try:
        known = not as_json and len(text) <= REMEMBERED
        data = copy.deepcopy(_read_once(text)) if known else _read(text, as_json)
        if "\\ud" in text.lower() and any(_SURROGATE.search(part) for part in _texts(data)):
            raise ValueError("half a character (a lone surrogate), which nothing can write")
        return data
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{label}: {where}: not readable as JSON ({error.msg})") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{label}: {line}{error.problem or error.context}") from error
    except RecursionError as error:
        raise ConfigError(f"{label}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{label}: not readable as {'JSON' if as_json else 'YAML'}: {reason}") from error


def read_text(path: Path, label: str, hint: str) -> str:
    """The file's text; `hint` is what to do where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not a text file in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}", hint) from error


def read_file(path: Path, label: str, hint: str = RECIPES) -> dict[str, Any]:
    """The mapping in a .yaml, .yml or .json file; `hint` is what to do where it cannot be read."""
    text = read_text(path, label, hint)
    data = parse_text(text, label, as_json=path.suffix.lower() == ".json")
    if not isinstance(data, dict):
        kind = _KINDS.get(type(data), type(data).__name__)
        raise ConfigError(f"{label}: is {kind}, and not a mapping of keys to values")
    return data


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Block YAML in the order of `data`."""
    return yaml.safe_dump(dict(data), sort_keys=False, width=110, allow_unicode=True)


def write_file(path: Path, data: Mapping[str, Any], header: str = "") -> None:
    """Writes JSON for the suffix .json, else YAML with `header` as its comment."""
    if path.suffix.lower() == ".json":
        text = json.dumps(data, indent=2) + "\n"
    else:
        comment = "".join(f"# {line}\n" for line in header.splitlines())
        text = comment + dump_yaml(data)
    write_text(path, text)
